"""What other nodes and other threads do to a model while it is recorded."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.capture.recorder import Window, record

from . import tiny
from .device import RUNS
from .helpers import blocks_of, count_hooks, global_map, job, names, plain

pytestmark = pytest.mark.usefixtures("host")

PERCENT = Window(False, 0.0, 1.0, 10)


def test_extra_passes_of_guidance_are_not_recorded() -> None:
    """Perturbed-attention guidance runs the positive once more with its self-attention switched off."""

    def again(args: dict[str, Any]) -> Tensor:
        options = args["model_options"].copy()
        options["transformer_options"] = {
            **options.get("transformer_options", {}),
            "patches_replace": {"attn1": {("middle", 0, 0): lambda q, k, v, extra: v}},
        }
        passes.append(1)
        (other,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 0.5 * (args["cond_denoised"] - other)

    passes: list[int] = []
    built = tiny.build("sd15")
    guided = built.model.clone()
    guided.set_model_sampler_post_cfg_function(again)
    work = job(built)
    recording, recorder = record(guided, PERCENT)
    expected = plain(guided, work)
    recorded = work.run(recording)["samples"]
    # Three steps of each run.
    assert torch.equal(recorded, expected) and len(passes) == 3 * (RUNS + 1)
    attention = recorder.collect(recorded)
    assert len(attention.sigmas) == 3
    # At the first step the image is the noise of the plain run: one more pass in the mean would show.
    first = Window(False, 0.0, 0.01, 1)
    attentions = []
    for model in (guided, built.model):
        recording, recorder = record(model, first)
        attentions.append(recorder.collect(work.run(recording)["samples"]))
    for one, other in zip(*(attention.layers for attention in attentions), strict=True):
        assert torch.equal(one.maps["average"], other.maps["average"])


@pytest.mark.parametrize("late", [False, True])
def test_a_compiled_model_records_as_if_it_were_not(late: bool) -> None:
    """The compile node may come before or after Record Attention. The eager backend compiles nothing, so it is quick."""
    compiler = importlib.import_module("comfy_api.torch_helpers.torch_compile")
    built = tiny.build("sd15")
    work = job(built, size=(8, 8), steps=1)
    directly, own = record(built.model, Window())
    expected = global_map(own, work.run(directly)["samples"])

    def compile_(model: Any) -> Any:
        compiled = model.clone()
        compiler.set_torch_compile_wrapper(compiled, backend="eager")
        return compiled

    recording, recorder = record(built.model if late else compile_(built.model), Window())
    latent = work.run(compile_(recording) if late else recording)["samples"]
    assert torch.allclose(global_map(recorder, latent), expected, atol=1e-6)
    assert count_hooks(built.model) == 0


def test_layers_that_change_size_on_the_way_do_not_stop_the_sampler() -> None:
    """Deep Shrink works on a smaller grid in the first part of sampling."""
    shrink = importlib.import_module("comfy_extras.nodes_model_downscale").PatchModelAddDownscale
    built = tiny.build("sd15_full")
    model = shrink.execute(built.model, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic").result[0]
    work = job(built, size=(16, 32), steps=5)
    recording, recorder = record(model, PERCENT)
    expected = plain(model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    attention = recorder.collect(latent)
    assert 0 < len(attention.sigmas) < 5
    assert "layers changed" in attention.note
    assert max(layer.height * layer.width for layer in attention.layers) == 16 * 32
    assert torch.isfinite(aggregate(attention).maps).all()


def test_tiled_self_attention_leaves_those_layers_unscored() -> None:
    tile = importlib.import_module("comfy_extras.nodes_hypertile").HyperTile
    built = tiny.build("sd15")
    model = tile.execute(built.model, 64, 1, 0, False)[0]
    recording, recorder = record(model, Window())
    torch.manual_seed(0)
    attention = recorder.collect(job(built, size=(16, 32)).run(recording)["samples"])
    assert names(attention.layers) == names(blocks_of(built.model).blocks)
    unscored = [torch.isnan(layer.scores["dot-product similarity"]).all() for layer in attention.layers]
    assert any(unscored) and not all(unscored)
    assert torch.isfinite(aggregate(attention).maps).all()


def test_another_thread_is_not_recorded() -> None:
    """Two threads run one network; only one of them records. Hooks sit on the modules that both use."""
    built = tiny.build("sd15")
    work = job(built, size=(8, 8), steps=1, cfg=1.0)
    other = job(built, size=(8, 16), steps=1, cfg=1.0, positive=built.conditioning(seed=8))
    recording, recorder = record(built.model, Window())
    expected = global_map(recorder, work.run(recording)["samples"])
    alone = plain(built.model, other)
    results: dict[str, Tensor] = {}

    def in_between(_module: Any, _args: Any) -> None:
        # In the middle of the recorded call, with all its hooks on, another thread goes through the whole network.
        if (
            threading.current_thread() is threading.main_thread()
            and "other" not in results
            and count_hooks(built.model) > 2
        ):
            thread = threading.Thread(target=lambda: results.update(other=other.run(built.model)["samples"]))
            thread.start()
            thread.join()

    handle = blocks_of(built.model).blocks[2].cross_attn.out.register_forward_pre_hook(in_between)
    try:
        latent = work.run(recording)["samples"]
    finally:
        handle.remove()
    assert torch.equal(results["other"], alone)
    assert torch.equal(global_map(recorder, latent), expected)
