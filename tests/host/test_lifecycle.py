"""A recorder comes and goes without a trace: hooks, wrappers, memory, interrupts, caches, other threads."""

from __future__ import annotations

import gc
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Recorder, Window, record

from . import tiny
from .helpers import Job, blocks_of, count_hooks, global_map, job, plain

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(autouse=True)
def _no_finished_runs() -> None:
    """The tests make the same latents over and over."""
    Recorder.finished.clear()


PERCENT = Window(False, 0.0, 1.0, 10)


def wrappers_of(model: Any) -> dict[str, list[str]]:
    return {kind: list(keys) for kind, keys in model.wrappers.items() if any(keys.values())}


def state_of(model: Any) -> tuple[Any, ...]:
    options = model.model_options
    return count_hooks(model), wrappers_of(model), repr(options), dict(model.object_patches), list(model.patches)


def alive() -> tuple[int, int]:
    """Objects that the collector knows, and bytes of all tensors."""
    gc.collect()
    storages = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if type(thing) is Tensor
    }
    # Asking a tensor for its storage makes an object that lives as long as the tensor. So they are counted from the start.
    return len(gc.get_objects()), sum(storages.values())


# -- traces -----------------------------------------------------------------------------------------------------------


def test_fifty_runs_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    work = job(built, size=(8, 8), steps=1, cfg=1.0)
    kept: dict[int, tuple[int, int]] = {}
    for number in range(50):
        recording, recorder = record(built.model, Window())
        work.seed = number
        recorder.collect(work.run(recording)["samples"])
        if number == 0:
            monkeypatch.setattr(Recorder.finished, "limit", 8 * Recorder.finished.nbytes)
        assert count_hooks(built.model) == 0
        del recording, recorder
        if number in (11, 49):
            kept[number] = alive()
    assert state_of(built.model) == before
    assert len(Recorder.finished) == 8
    # Once the cache is full nothing more is kept: 38 runs later there are as many bytes of tensors, and as many objects up to
    # what ComfyUI and other threads leave about. A run that stays is over a hundred objects, so one in ten would show.
    assert kept[49][0] - kept[11][0] < 38 * 10
    assert kept[49][1] <= kept[11][1]


def test_a_kept_run_holds_no_model_and_no_conditioning() -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    latent = job(built).run(recording)["samples"]
    run = recorder.find(latent)
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


def runs_of(recording: Any, built: tiny.Tiny, count: int) -> list[Tensor]:
    return [job(built, size=(8, 8), steps=1, seed=seed).run(recording)["samples"] for seed in range(count)]


def test_finished_runs_are_kept_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    kept = recorder.collect(runs_of(recording, built, 1)[0])
    one = Recorder.finished.nbytes
    values = [value for layer in kept.layers for value in (*layer.maps.values(), *layer.scores.values())]
    assert kept.affinity is not None
    assert one == 4 * sum(value.numel() for value in (*values, kept.affinity.matrix, *kept.affinity.parts.values()))
    monkeypatch.setattr(Recorder.finished, "limit", 3 * one)
    latents = runs_of(recording, built, 5)
    assert len(Recorder.finished) == 3 and all(recorder.collect(latent) for latent in latents[2:])
    for latent in latents[:2]:
        with pytest.raises(AttentionError, match="only the last runs are kept"):
            recorder.collect(latent)
    # A larger one takes the place of several, and one that is larger than the limit is kept all the same.
    large = job(built, batch=4, size=(8, 8), steps=1).run(recording)["samples"]
    assert len(Recorder.finished) == 1 and recorder.collect(large)


def test_a_list_of_runs_in_one_graph_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_execution.utils import CurrentNodeContext

    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    runs_of(recording, built, 1)
    one = Recorder.finished.nbytes
    monkeypatch.setattr(Recorder.finished, "limit", 2 * one)
    monkeypatch.setattr(Recorder.finished, "waiting_limit", 12 * one)
    with CurrentNodeContext("graph 1", "3"):
        latents = runs_of(recording, built, 10)
        assert all(recorder.collect(latent) for latent in latents)
        # Those that were collected make room.
        work = job(built, size=(8, 8), steps=1, seed=99)
        assert recorder.collect(work.run(recording)["samples"])
        assert len(Recorder.finished) == 2
    with CurrentNodeContext("graph 2", "3"):
        runs_of(recording, built, 14)
        assert len(Recorder.finished) == 12
    with CurrentNodeContext("graph 3", "3"):
        runs_of(recording, built, 1)
        assert len(Recorder.finished) == 2


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
    expected = plain(built.model, work)
    recorded = work.run(recording)["samples"]
    assert torch.equal(expected, recorded)
    # Three steps of this run and none of the interrupted one.
    assert len(recorder.collect(recorded).sigmas) == 3


@pytest.mark.parametrize(
    "error", [comfy.model_management.InterruptProcessingException, RuntimeError, KeyboardInterrupt]
)
def test_an_exception_inside_a_block_leaves_the_model_clean(error: type[BaseException]) -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    work = job(built)
    block = blocks_of(built.model).blocks[3].cross_attn.out

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
    expected = plain(built.model, work)
    recorded = work.run(recording)["samples"]
    assert recorder.collect(recorded).layers
    assert torch.equal(recorded, expected)


# -- several samplers, caches, chains ---------------------------------------------------------------------------------


def test_samplers_that_share_a_recorder_each_leave_a_run() -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    jobs = [
        job(built, positive=built.conditioning(seed=seed), size=size) for seed, size in ((1, (16, 24)), (7, (24, 16)))
    ]
    latents = [work.run(recording)["samples"] for work in jobs]
    alone = []
    for work in jobs:
        single, own = record(built.model, Window())
        alone.append(global_map(own, work.run(single)["samples"]))
    for latent, expected in zip(reversed(latents), reversed(alone), strict=True):
        assert torch.equal(global_map(recorder, latent), expected)


def test_a_cached_sampler_still_has_its_recording() -> None:
    """ComfyUI runs neither node again, or only Record Attention, when a graph is queued again."""
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    latent = job(built).run(recording)["samples"]
    first = global_map(recorder, latent)
    assert torch.equal(global_map(recorder, latent.clone()), first)
    assert torch.equal(global_map(recorder, latent.to(torch.float16)), first)
    again = record(built.model, Window())[1]
    assert torch.equal(global_map(again, latent), first)
    for other in (record(built.model, PERCENT)[1], record(built.model, Window(), RecordOptions(head_methods="all"))[1]):
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
    assert all(keys == [Recorder.key] for keys in wrappers_of(both).values())
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
