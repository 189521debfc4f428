"""Recording any family changes nothing that is sampled and leaves no trace, also where ComfyUI hides attention."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.passthrough import PassThrough
from goca_core.capture.recorder import Window, record

from . import tiny
from .families import FAMILIES, HIDDEN
from .helpers import IDENTICAL_RUNS, blocks_of, count_hooks, global_map, identical, job, plain

pytestmark = pytest.mark.usefixtures("host")

SAMPLERS = ["euler", "heun", "dpmpp_2m"]


@pytest.mark.parametrize(("number", "name"), list(enumerate(FAMILIES)))
def test_the_latent_does_not_change_by_a_bit(number: int, name: str) -> None:
    built = tiny.build(name)
    sampler, cfg = SAMPLERS[number % 3], (1.0, 4.0)[number % 2]
    batch = 1 if FAMILIES[name].alone else 1 + number % 2
    work = job(built, batch, FAMILIES[name].other, sampler=sampler, cfg=cfg)
    attention = identical(built.model, work, method="auto")
    assert len(attention.layers) == len(blocks_of(built.model).blocks)
    assert "could not" not in attention.note
    # Random models hardly attend to any place in particular, but the pixels are not all alike.
    assert aggregate(attention).maps.std((2, 3)).max() > 1e-6
    several = identical(built.model, work, window=Window(False, 0, 1, 3), head_methods="all", layer_methods="all")
    assert len(several.sigmas) == 3


def _louder(func: Callable[..., Tensor], q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An override of another pack: it changes what attention gives."""
    return func(q * 0.9, *args, **kwargs) * 1.01


@pytest.mark.parametrize("name", ["pixart_alpha", "hunyuan_dit", "flux"])
def test_an_override_of_another_node_is_asked_as_often_as_without(name: str) -> None:
    """Where ComfyUI hides attention the override is never asked, and must not be while recording either."""
    built = tiny.build(name)
    calls: list[int] = []

    def counted(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return _louder(func, *args, **kwargs)

    model = built.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = counted
    attention = identical(model, job(built))
    assert len(calls) % IDENTICAL_RUNS == 0 and bool(calls) is not bool(FAMILIES[name].hidden)
    assert len(attention.layers) == len(blocks_of(model).blocks)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_computes_nonsense(name: str) -> None:
    built = tiny.build(name)
    block = blocks_of(built.model).blocks[1]
    with torch.no_grad():
        block.cross_attn.query.weight[0, 0] = torch.nan
    recording, recorder = record(built.model, Window())
    latent = job(built, steps=1).run(recording)["samples"]
    with pytest.raises(AttentionError, match=rf"not a number .* from layer {block.name} on"):
        aggregate(recorder.collect(latent))


@pytest.mark.parametrize("name", ["pixart_sigma", "hunyuan_dit", "flux"])
def test_an_exception_leaves_the_model_clean(name: str) -> None:
    built = tiny.build(name)
    recording, recorder = record(built.model, Window())
    work = job(built)

    def fail(_module: Any, _args: Any) -> None:
        if count_hooks(built.model) > 2:  # the recorder's are on
            raise KeyboardInterrupt("in the middle")

    handle = blocks_of(built.model).blocks[-1].cross_attn.out.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt, match="in the middle"):
        work.run(recording)
    handle.remove()
    assert count_hooks(built.model) == 0
    expected = plain(built.model, work)
    recorded = work.run(recording)["samples"]
    assert torch.equal(recorded, expected) and recorder.collect(recorded).layers


# -- attention that ComfyUI hides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HIDDEN, "ltxv"])
def test_pass_throughs_are_put_in_place_once(name: str) -> None:
    """Under every name by which ComfyUI's networks call attention. Some call it through the central module."""
    built = tiny.build(name)
    work = job(built, steps=1, cfg=1.0)
    work.run(record(built.model, Window())[0])
    central = "comfy.ldm.modules.attention"
    modules = [
        importlib.import_module(name) for name in (FAMILIES[name].hidden or central, central, "comfy.ldm.flux.math")
    ]
    found = [module.optimized_attention for module in modules]
    for each in found:
        assert isinstance(each, PassThrough) and not isinstance(each.function, PassThrough)
        assert each.__name__ == each.function.__name__
    work.run(record(built.model, Window())[0])
    assert all(module.optimized_attention is each for module, each in zip(modules, found, strict=True))


@pytest.mark.parametrize("name", [*HIDDEN, "flux"])
def test_a_pass_through_that_was_taken_away_is_put_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pack may put a function of its own under the name at any time. What it calls in turn is shown once."""
    built = tiny.build(name)
    module = importlib.import_module(FAMILIES[name].hidden or "comfy.ldm.flux.math")
    plain = importlib.import_module("comfy.ldm.modules.attention").optimized_attention
    recording, recorder = record(built.model, Window())
    monkeypatch.setattr(module, "optimized_attention", lambda *args, **kwargs: plain(*args, **kwargs))
    assert recorder.collect(job(built, steps=1).run(recording)["samples"]).layers


def test_attention_that_another_pack_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs replace the forward pass of an attention module, and call the function by the name that they imported."""
    built = tiny.build("wan21")
    central = importlib.import_module("comfy.ldm.modules.attention")
    central = getattr(central.optimized_attention, "function", central.optimized_attention)
    pack = ModuleType("goca_test_pack")
    vars(pack)["optimized_attention"] = central
    monkeypatch.setitem(sys.modules, pack.__name__, pack)
    for block in built.model.model.diffusion_model.blocks:
        own = block.cross_attn

        def forward(x: Tensor, context: Tensor, own: Any = own, **_kwargs: Any) -> Tensor:
            q, k = own.norm_q(own.q(x)), own.norm_k(own.k(context))
            out: Tensor = own.o(vars(pack)["optimized_attention"](q, k, own.v(context), heads=own.num_heads))
            return out

        monkeypatch.setattr(own, "forward", forward)
    attention = identical(built.model, job(built))
    assert len(attention.layers) == len(blocks_of(built.model).blocks)


@pytest.mark.parametrize("name", HIDDEN)
def test_another_model_and_another_thread_are_not_recorded(name: str) -> None:
    """In the middle of a recorded call a second model of the family runs in the same thread, the same one in another."""
    built, second = tiny.build(name), tiny.build(name, seed=9)
    work, other = job(built, cfg=1.0, steps=1), job(second, cfg=1.0, steps=1, positive=second.conditioning(seed=8))
    recording, recorder = record(built.model, Window())
    expected = global_map(recorder, work.run(recording)["samples"])
    alone = plain(second.model, other), plain(built.model, other)
    results: list[Tensor] = []

    def in_between(_module: Any, _args: Any) -> None:
        if not results and count_hooks(built.model) > 2:
            results.append(other.run(second.model)["samples"])
            thread = threading.Thread(target=lambda: results.append(other.run(built.model)["samples"]))
            thread.start()
            thread.join()

    handle = [*blocks_of(built.model).blocks[-1].sites][-1].query.register_forward_pre_hook(in_between)
    latent = work.run(recording)["samples"]
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(results, alone, strict=True))
    assert torch.equal(global_map(recorder, latent), expected)


@pytest.mark.parametrize("name", ["pixart_sigma", "flux"])
def test_a_compiled_model_records_as_if_it_were_not(name: str) -> None:
    """The eager backend compiles nothing, so it is quick; the pass-through must not stand in the compiler's way."""
    compiler = importlib.import_module("comfy_api.torch_helpers.torch_compile")
    built = tiny.build(name)
    work = job(built, steps=1, cfg=1.0)
    directly, own = record(built.model, Window())
    expected = global_map(own, work.run(directly)["samples"])
    compiled = built.model.clone()
    compiler.set_torch_compile_wrapper(compiled, backend="eager")
    alone = work.run(compiled)["samples"]
    recording, recorder = record(compiled, Window())
    latent = work.run(recording)["samples"]
    assert torch.allclose(latent, alone, atol=1e-5)
    assert torch.allclose(global_map(recorder, latent), expected, atol=1e-6)
