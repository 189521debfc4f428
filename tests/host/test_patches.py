"""Nodes that patch a model, ComfyUI's own and stand-ins for others: recording goes along with each of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as attention_functions
import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.recorder import Window, record

from . import tiny
from .dense import check, probe_and_record
from .device import ACCELERATED, on_cpu, to_device
from .helpers import IDENTICAL_RUNS, blocks_of, identical, job, names, plain

pytestmark = pytest.mark.usefixtures("host")

# The first step sees the noise of any run, whatever guidance does afterwards.
FIRST = Window(False, 0.0, 0.01, 1)


def node(module: str, name: str, *inputs: Any) -> Any:
    """The MODEL that a node of ComfyUI gives."""
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name).execute(*inputs).result[0]


# -- guidance by more passes ------------------------------------------------------------------------------------------

GUIDANCE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "PAG": ("sd15", lambda model: node("nodes_pag", "PerturbedAttentionGuidance", model, 3.0)),
    "SAG": ("sd15", lambda model: node("nodes_sag", "SelfAttentionGuidance", model, 0.5, 2.0)),
    "SLG": ("sd3", lambda model: node("nodes_slg", "SkipLayerGuidanceDiT", model, 3.0, 0.0, 1.0, "1", "", 0.0)),
    "SLG, simple": ("sd3", lambda model: node("nodes_slg", "SkipLayerGuidanceDiTSimple", model, 0.0, 1.0, "1", "")),
}


@pytest.mark.parametrize("kind", GUIDANCE)
def test_guidance_by_more_passes(kind: str) -> None:
    """The passes with a layer left out or its attention switched off are not what is recorded."""
    name, guide = GUIDANCE[kind]
    built = tiny.build(name)
    work, guided = job(built, cfg=4.0), guide(built.model)
    assert not torch.equal(work.run(guided)["samples"], work.run(built.model)["samples"])
    with_it, without = (identical(model, work, window=FIRST) for model in (guided, built.model))
    assert with_it.sigmas == without.sigmas and names(with_it.layers) == names(without.layers)
    for one, other in zip(with_it.layers, without.layers, strict=True):
        assert torch.allclose(one.maps["average"], other.maps["average"], atol=1e-6), one.name


# -- patches of attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_normalised_attention_guidance(name: str) -> None:
    """NAG writes into what attention gave, of both halves."""
    built = tiny.build(name)
    model, work = node("nodes_nag", "NAGuidance", built.model, 5.0, 0.5, 1.5), job(built, cfg=4.0)
    assert not torch.equal(work.run(model)["samples"], work.run(built.model)["samples"])
    assert names(identical(model, work).layers) == names(blocks_of(built.model).blocks)


def test_merged_tokens_leave_those_layers_unscored() -> None:
    built = tiny.build("sd15")
    model, work = node("nodes_tomesd", "TomePatchModel", built.model, 0.5), job(built)
    assert not torch.equal(work.run(model)["samples"], work.run(built.model)["samples"])
    if ACCELERATED:  # merging adds up in another order each time
        recording, recorder = record(model, Window())
        attention = recorder.collect(work.run(recording)["samples"])
    else:
        attention = identical(model, work)
    assert names(attention.layers) == names(blocks_of(built.model).blocks)
    unscored = [torch.isnan(layer.scores["dot-product similarity"]).all() for layer in attention.layers]
    assert any(unscored) and not all(unscored)
    assert torch.isfinite(aggregate(attention).maps).all()


@pytest.mark.parametrize("version", ["FreeU", "FreeU_V2"])
def test_free_u(version: str) -> None:
    built = tiny.build("sd15")
    model, work = node("nodes_freelunch", version, built.model, 1.3, 1.4, 0.9, 0.2), job(built)
    assert not torch.equal(work.run(model)["samples"], work.run(built.model)["samples"])
    identical(model, work)
    probe, attention = probe_and_record(model, work)
    check(attention, probe)


@pytest.mark.parametrize("name", ["sd15", "flux"])
@pytest.mark.parametrize("backend", ["attention_basic", "attention_split", "attention_sub_quad"])
def test_another_kernel(name: str, backend: str) -> None:
    """SageAttention nodes and their like put another kernel of attention into the model's options."""
    built, calls = tiny.build(name), []

    def kernel(_func: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        out: Tensor = getattr(attention_functions, backend)(*args, **kwargs)
        return out

    model, work = built.model.clone(), job(built, steps=1)
    model.model_options["transformer_options"]["optimized_attention_override"] = kernel
    with_it = identical(model, work)
    assert calls and len(calls) % IDENTICAL_RUNS == 0
    recording, recorder = record(built.model, Window())
    without = recorder.collect(work.run(recording)["samples"])
    for one, other in zip(with_it.layers, without.layers, strict=True):
        assert torch.allclose(one.maps["average"], other.maps["average"], atol=1e-5), one.name


def test_an_image_as_a_second_prompt() -> None:
    """IPAdapter and its relatives attend to the text as the model does, to an image as well, and add the two, by
    functions that no override is told of. What the text's part was is recorded."""
    built, seen = tiny.build("sd15"), []

    def adapter(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        generator = torch.Generator().manual_seed(k.shape[-1])
        image = [torch.randn(q.shape[0], 4, k.shape[-1], generator=generator).to(q) for _ in range(2)]
        attend, heads = attention_functions.optimized_attention, extra["n_heads"]
        row = extra["cond_or_uncond"].index(0)
        rows = slice(row * q.shape[0] // 2, (row + 1) * q.shape[0] // 2)
        split = [part[rows].unflatten(-1, (heads, -1)).transpose(1, 2).double() for part in (q, k)]
        seen.append(on_cpu(torch.softmax(split[0] @ split[1].mT * split[0].shape[-1] ** -0.5, -1).mean(1)))
        return attend(q, k, v, heads) + 0.7 * attend(q, *image, heads)

    model = built.model.clone()
    plan = blocks_of(model).blocks
    for block in plan:
        kind, number, index = block.name.split(".")
        model.set_model_attn2_replace(adapter, kind, int(number), int(index))
    work = job(built, steps=1, cfg=4.0)
    attention = identical(model, work)
    assert names(attention.layers) == names(plan) and len(seen) == IDENTICAL_RUNS * len(plan)
    # The recorded run is the last but one.
    for layer, expected in zip(attention.layers, seen[-2 * len(plan) :], strict=False):
        assert torch.allclose(layer.maps["average"].double(), expected, atol=1e-6), layer.name


def test_attention_couple() -> None:
    """It computes each prompt's attention as rows of its own, which cannot be told apart: that is said."""
    built = tiny.build("sd15")
    other = to_device(built.conditioning(seed=8)[0][0])

    def split(n: Tensor, context: Tensor, value: Tensor, _extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        more = other.expand(n.shape[0], -1, -1)
        return n.repeat(2, 1, 1), torch.cat((context, more)), torch.cat((value, more))

    def together(n: Tensor, _extra: dict[str, Any]) -> Tensor:
        base, region = n.chunk(2)
        left = torch.arange(n.shape[1], device=n.device)[None, :, None] % 2 == 0
        return torch.where(left, base, region)

    model, work = built.model.clone(), job(built, steps=1)
    model.set_model_attn2_patch(split)
    model.set_model_attn2_output_patch(together)
    recording, recorder = record(model, Window())
    expected = plain(model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    assert not torch.equal(latent, work.run(built.model)["samples"])
    with pytest.raises(AttentionError, match=r"Nothing was recorded.*replaced as a whole.*attention couple"):
        recorder.collect(latent)


# -- conditionings ----------------------------------------------------------------------------------------------------


def test_a_control_net(host: Any) -> None:
    """Its own attention is none of the model's."""
    built = tiny.build("sd15")
    image = torch.rand(1, 128, 192, 3, generator=torch.Generator().manual_seed(3))
    apply = host.nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(
        built.conditioning(seed=1), built.conditioning(seed=2), tiny.control("sd15"), image, 1.0, 0.0, 1.0
    )
    work = job(built, positive=positive, negative=negative, cfg=4.0)
    assert not torch.equal(work.run(built.model)["samples"], job(built, cfg=4.0).run(built.model)["samples"])
    identical(built.model, work)
    probe, attention = probe_and_record(built.model, work)
    check(attention, probe)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_batch_of_prompts(name: str) -> None:
    """Each image of a batch has a prompt of its own; two prompts for four images take turns."""
    built = tiny.build(name)
    positive = built.conditioning(batch=2, seed=1)
    probe, attention = probe_and_record(built.model, job(built, 4, positive=positive, cfg=4.0))
    check(attention, probe)
    maps = attention.layers[0].maps["average"]
    assert maps.shape[0] == 4 and not torch.allclose(maps[0], maps[1], atol=1e-4)
