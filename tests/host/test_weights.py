"""Heads are weighted by the output projection as ComfyUI applies it: in eight bits, streamed, of a make of its own."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goca_core.capture.recorder import Window, record

from . import tiny
from .dense import check, probe_and_record
from .device import ACCELERATED
from .helpers import blocks_of, global_map, identical, job, with_lora

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits(dtype: torch.dtype) -> None:
    built = tiny.build("sd15", dtype=dtype, cast=torch.float32)
    assert all(block.cross_attn.out.weight.dtype == dtype for block in blocks_of(built.model).blocks)
    work = job(built, cfg=4.0)
    probe, attention = probe_and_record(built.model, work)
    check(attention, probe)
    identical(built.model, work)


class Packed(nn.Module):
    """A linear layer that keeps whole numbers and scales and unpacks them in each call, as GGUF nodes do."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.packed = (linear.weight.detach() / self.scales).round().to(torch.int8)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """For the test alone: the recorder knows nothing of such a layer but what it does."""
        return self.packed * self.scales

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x), self.bias)


def test_a_layer_of_a_foreign_make() -> None:
    built = tiny.build("sd15")
    network = built.model.model.diffusion_model
    outs = {id(block.cross_attn.out) for block in blocks_of(built.model).blocks}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in outs:
                setattr(parent, name, Packed(child))
    assert all(isinstance(block.cross_attn.out, Packed) for block in blocks_of(built.model).blocks)
    work = job(built, cfg=4.0)
    probe, attention = probe_and_record(built.model, work)
    check(attention, probe)
    identical(built.model, work)


class Streaming(comfy.model_patcher.ModelPatcher):
    """A MODEL for which there is hardly any memory: its layers stay where they are and are patched in each call."""

    def partially_load(self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False) -> Any:
        return super().partially_load(device_to, min(extra_memory, 1000), force_patch_weights)


def test_layers_that_are_streamed() -> None:
    """Little memory: a LoRA is not in the weights then, but put onto them in each call."""
    whole, built = tiny.build("sd15"), tiny.build("sd15")
    built.model.__class__ = Streaming
    model, work = with_lora(built.model), job(built, cfg=4.0)
    identical(model, work)
    outs = [block.cross_attn.out for block in blocks_of(built.model).blocks]
    assert any(out.weight_function for out in outs)
    maps = []
    for patched in (model, with_lora(whole.model)):
        recording, recorder = record(patched, Window())
        maps.append(global_map(recorder, work.run(recording)["samples"]))
    torch.testing.assert_close(*maps, rtol=0, atol=1e-3 if ACCELERATED else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_is_asked_for_in_the_precision_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """ComfyUI may keep a patched weight in the precision in which it was first asked for, and use it in later runs."""
    import comfy.ops

    asked: list[torch.dtype] = []
    cast = comfy.ops.cast_bias_weight

    def counted(module: Any, input: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("dtype") or input.dtype)
        return cast(module, input, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    built = tiny.build("sd15", dtype=dtype)
    model, work = with_lora(built.model), job(built, 1, cfg=4.0)
    recording, recorder = record(model, Window())
    latent = work.run(recording)["samples"]
    assert recorder.collect(latent).layers and set(asked) == {dtype}
