"""A recorder comes and goes without a trace: hooks, wrappers, memory, interrupts, caches, other threads."""

from __future__ import annotations

import gc
import importlib
import threading
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core.attention import AttentionError, aggregate
from goca_core.capture import recorder as recorders
from goca_core.capture.recorder import Recorder, Window, record

from . import tiny
from .helpers import Job, blocks_of, count_hooks, job, names

pytestmark = pytest.mark.usefixtures("host")

@pytest.fixture(autouse=True)
def _empty_shelf() -> None:
    """The tests make the same latents over and over."""
    recorders._shelf.clear()


PERCENT = Window(False, 0.0, 1.0, 10)


def wrappers_of(model: Any) -> dict[str, list[str]]:
    return {kind: list(keys) for kind, keys in model.wrappers.items() if any(keys.values())}


def state_of(model: Any) -> tuple[Any, ...]:
    options = model.model_options
    return count_hooks(model), wrappers_of(model), repr(options), dict(model.object_patches), list(model.patches)


def alive() -> tuple[int, int]:
    """Objects that the collector knows, and bytes of all tensors."""
    gc.collect()
    objects = gc.get_objects()
    storages = {thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes() for thing in objects if type(thing) is Tensor}
    return len(objects), sum(storages.values())


def global_map(recorder: Recorder, latent: Tensor) -> Tensor:
    return aggregate(recorder.collect(latent)).maps


# -- traces -----------------------------------------------------------------------------------------------------------


def test_fifty_runs_leave_nothing_behind() -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    work = job(built, size=(8, 8), steps=1, cfg=1.0)
    kept: dict[int, tuple[int, int]] = {}
    for number in range(50):
        recording, recorder = record(built.model, Window())
        work.seed = number
        recorder.collect(work.run(recording)["samples"])
        assert count_hooks(built.model) == 0
        del recording, recorder
        if number in (11, 49):
            kept[number] = alive()
    assert state_of(built.model) == before
    assert len({id(run) for run in recorders._shelf.values()}) == 8
    # Once the shelf is full nothing more is kept: 38 runs later there are as many objects and bytes of tensors, up to
    # what the host itself leaves about; one run alone is over a hundred objects.
    assert kept[49][0] - kept[11][0] < 100
    assert kept[49][1] <= kept[11][1]


def test_a_kept_run_holds_no_model_and_no_conditioning() -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    latent = job(built).run(recording)["samples"]
    run = recorders._shelf[recorder._marks(latent)[0]]
    seen: set[int] = set()
    todo: list[Any] = [run, recorder]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert not isinstance(thing, torch.nn.Module | comfy.samplers.CFGGuider)
        if isinstance(thing, Tensor):
            assert thing.device.type == "cpu" and thing.dtype == torch.float32
            # A view would keep the whole of what it is a part of.
            assert thing.untyped_storage().nbytes() == thing.numel() * thing.element_size()
        todo += vars(thing).values() if hasattr(thing, "__dict__") else []
        todo += thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else []
    assert len(seen) > 50


def test_the_shelf_forgets_the_oldest() -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    latents = [job(built, size=(8, 8), steps=1, seed=seed).run(recording)["samples"] for seed in range(9)]
    assert all(recorder.collect(latent) for latent in latents[1:])
    with pytest.raises(AttentionError, match="last 8 runs"):
        recorder.collect(latents[0])


# -- interrupts -------------------------------------------------------------------------------------------------------


def interrupted(model: Any, work: Job, step: int) -> None:
    def stop(number: int, *_rest: Any) -> None:
        if number == step:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, work.positive, work.negative, work.latent, steps=3, callback=stop)


def test_an_interrupt_leaves_the_model_clean() -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    recording, recorder = record(built.model, PERCENT)
    work = job(built)
    interrupted(recording, work, 1)
    assert state_of(built.model) == before
    assert recorder._active == []
    plain = work.run(built.model)["samples"]
    recorded = work.run(recording)["samples"]
    assert torch.equal(plain, recorded)
    # Three steps of this run and none of the interrupted one.
    assert len(recorder.collect(recorded).sigmas) == 3


@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_a_block_leaves_the_model_clean(error: type[BaseException]) -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    work = job(built)
    block = blocks_of(built.model).blocks[3].cross_out

    def fail(_module: Any, _args: Any) -> None:
        if count_hooks(built.model) > 2:  # the recorder's are on
            raise error("in the middle")

    handle = block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(error, match="in the middle"):
            work.run(recording)
        assert count_hooks(built.model) == 1
    finally:
        handle.remove()
    assert recorder._active == []
    recorded = work.run(recording)["samples"]
    assert recorder.collect(recorded).layers
    assert torch.equal(recorded, work.run(built.model)["samples"])


# -- several samplers, caches, chains ---------------------------------------------------------------------------------


def test_samplers_that_share_a_recorder_each_leave_a_run() -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    jobs = [job(built, positive=built.conditioning(seed=seed), size=size) for seed, size in ((1, (16, 24)), (7, (24, 16)))]
    latents = [work.run(recording)["samples"] for work in jobs]
    alone = []
    for work in jobs:
        single, own = record(built.model, Window())
        alone.append(global_map(own, work.run(single)["samples"]))
    for latent, expected in zip(reversed(latents), reversed(alone), strict=True):
        assert torch.equal(global_map(recorder, latent), expected)


def test_a_cached_sampler_still_has_its_recording() -> None:
    """The host runs neither node again, or only Record Attention, when a graph is queued again."""
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    latent = job(built).run(recording)["samples"]
    first = global_map(recorder, latent)
    assert torch.equal(global_map(recorder, latent.clone()), first)
    assert torch.equal(global_map(recorder, latent.to(torch.float16)), first)
    again = record(built.model, Window())[1]
    assert torch.equal(global_map(again, latent), first)
    for other in (record(built.model, PERCENT)[1], record(built.model, Window(), all_heads=True)[1]):
        with pytest.raises(AttentionError, match="not made by a sampler that records with this recorder"):
            other.collect(latent)


def test_a_second_recorder_takes_the_place_of_the_first() -> None:
    built = tiny.build("sd15")
    first_model, first = record(built.model, Window())
    both, second = record(first_model, PERCENT)
    latent = job(built).run(both)["samples"]
    assert len(second.collect(latent).sigmas) == 3
    with pytest.raises(AttentionError):
        first.collect(latent)
    assert all(keys == [recorders.KEY] for keys in wrappers_of(both).values())
    assert all(len(fns) == 1 for keys in both.wrappers.values() for fns in keys.values())


def test_the_model_that_was_recorded_stays_as_it_was() -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    recording, _ = record(built.model, Window())
    assert state_of(built.model) == before
    assert recording.model is built.model.model and recording is not built.model
    job(built).run(recording)
    assert state_of(built.model) == before
    assert recording.model_options["transformer_options"].get("optimized_attention_override") is None


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
    recorded = work.run(recording)["samples"]
    assert torch.equal(recorded, work.run(guided)["samples"]) and len(passes) == 6
    attention = recorder.collect(recorded)
    assert len(attention.sigmas) == 3
    # At the first step the picture is the noise of the plain run: one more pass in the mean would show.
    first = Window(False, 0.0, 0.01, 1)
    attentions = []
    for model in (guided, built.model):
        recording, recorder = record(model, first)
        attentions.append(recorder.collect(work.run(recording)["samples"]))
    for one, other in zip(*(attention.layers for attention in attentions), strict=True):
        assert torch.equal(one.maps["average"], other.maps["average"])


# -- what other nodes do to a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_compiled_model_records_as_if_it_were_not(late: bool) -> None:
    """The compile node may come before or after Record Attention. The eager backend compiles nothing, so it is quick."""
    compiler = importlib.import_module("comfy_api.torch_helpers.torch_compile")
    built = tiny.build("sd15")
    work = job(built, size=(8, 8), steps=1)
    plain, own = record(built.model, Window())
    expected = global_map(own, work.run(plain)["samples"])

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
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, work.run(model)["samples"])
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


# -- threads ----------------------------------------------------------------------------------------------------------


def test_another_thread_is_not_recorded() -> None:
    """Two threads run one network; only one of them records. Hooks sit on the modules that both use."""
    built = tiny.build("sd15")
    work = job(built, size=(8, 8), steps=1, cfg=1.0)
    other = job(built, size=(8, 16), steps=1, cfg=1.0, positive=built.conditioning(seed=8))
    recording, recorder = record(built.model, Window())
    expected = global_map(recorder, work.run(recording)["samples"])
    plain = other.run(built.model)["samples"]
    results: dict[str, Tensor] = {}

    def in_between(_module: Any, _args: Any) -> None:
        # In the middle of the recorded call, with all its hooks on, another thread goes through the whole network.
        if threading.current_thread() is threading.main_thread() and "other" not in results and count_hooks(built.model) > 2:
            thread = threading.Thread(target=lambda: results.update(other=other.run(built.model)["samples"]))
            thread.start()
            thread.join()

    handle = blocks_of(built.model).blocks[2].cross_out.register_forward_pre_hook(in_between)
    try:
        latent = work.run(recording)["samples"]
    finally:
        handle.remove()
    assert torch.equal(results["other"], plain)
    assert torch.equal(global_map(recorder, latent), expected)
