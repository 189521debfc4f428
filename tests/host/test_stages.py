"""Runs in stages: a first one that stops early and leaves noise to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.recorder import Window, record

from . import tiny
from .helpers import Job, identical, job, plain
from .passes import PLAN, Asked
from .passes import work as speaking_work

pytestmark = pytest.mark.usefixtures("host")

FULL = Window(False, 0.0, 1.0, 4)
NODES = "KSamplerAdvanced", "SamplerCustomAdvanced"


def first_stage(built: tiny.Tiny, **options: Any) -> Job:
    """Four of eight steps."""
    return job(built, **{"steps": 8, "last": 4, "cfg": 1.0, "node": NODES[0], **options})


def evaluated(model: Any, work: Job) -> list[float]:
    """The noise levels of all evaluations of a run."""
    from comfy.patcher_extension import WrappersMP

    levels: list[float] = []

    def see(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        levels.append(float(timestep.max()))
        result: Tensor = executor(x, timestep, *args, **kwargs)
        return result

    seen = model.clone()
    seen.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "levels", see)
    work.run(seen)
    return levels


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "wan21"])
def test_a_run_that_stops_early_records_its_last_evaluation(name: str, node: str) -> None:
    built = tiny.build(name)
    work = first_stage(built, node=node)
    levels = evaluated(built.model, work)
    attention = identical(built.model, work)
    assert attention.sigmas == (pytest.approx(levels[-1], rel=1e-4),)


@pytest.mark.parametrize(
    ("sampler", "last"),
    [
        (sampler, last)
        for sampler in ("heun", "dpm_2", "dpm_fast", "lms", "dpmpp_2m", "uni_pc", "sa_solver")
        for last in range(3 if sampler == "uni_pc" else 2, 6)  # UniPC needs three steps
    ],
)
def test_every_way_to_sample_does(sampler: str, last: int) -> None:
    built = tiny.build("sd15")
    work = first_stage(built, sampler=sampler, last=last, size=(8, 8))
    levels = evaluated(built.model, work)
    recording, recorder = record(built.model, Window())
    attention = recorder.collect(work.run(recording)["samples"])
    (level,) = attention.sigmas
    # Samplers of higher order evaluate between the levels, and at the end.
    assert level >= levels[-1] * 0.999 and sum(one < level * 0.999 for one in levels) <= 1
    assert "far from the best level" in attention.note


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_fast"])
def test_a_window_gives_the_number_asked_for(sampler: str) -> None:
    built = tiny.build("sd15")
    work = first_stage(built, sampler=sampler, size=(8, 8))
    for asked in (1, 2, 3, 4):
        recording, recorder = record(built.model, replace(FULL, maximum=asked))
        assert len(recorder.collect(work.run(recording)["samples"]).sigmas) == asked


@pytest.mark.parametrize("node", NODES)
def test_two_stages_are_two_recordings(node: str) -> None:
    built = tiny.build("sd15")
    recording, recorder = record(built.model, Window())
    first = first_stage(built, node=node)
    half = first.run(recording)["samples"]
    second = replace(first, latent=half, first=4, last=10000)
    whole = second.run(recording)["samples"]
    assert torch.equal(half, plain(built.model, first)) and torch.equal(whole, plain(built.model, second))
    early, late = recorder.collect(half), recorder.collect(whole)
    assert "far from the best level" in early.note and not late.note
    assert early.sigmas[0] > 1 > late.sigmas[0]


def test_a_regional_pass_of_a_first_stage() -> None:
    built = tiny.build("sd15")
    work = speaking_work(built, steps=8, last=4, node=NODES[0], cfg=1.0)
    # It stops at about 0.55 of sampling.
    model, made = Asked(built, replace(PLAN, start=0.4)).install()
    samples = work.run(model)["samples"]
    assert made.masks(samples)[0].labels == ("red cat", "grass", "sky")
    assert not torch.equal(samples, plain(built.model, work))
    model, made = Asked(built, replace(PLAN, start=0.9, evaluations=1)).install()
    samples = work.run(model)["samples"]
    assert torch.equal(samples, plain(built.model, work))
    assert len(made.find(samples).attention(0).sigmas) == 1
    with pytest.raises(AttentionError, match=r"sampling ended before a step past 0\.9 of it"):
        made.masks(samples)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("name", ["sd15", "flux", "wan21"])
def test_the_denoised_output_is_recognised(name: str, sampler: str) -> None:
    built = tiny.build(name)
    recording, recorder = record(built.model, Window())
    for last in (4, 10000):
        work = first_stage(built, sampler=sampler, last=last, node=NODES[1])
        with torch.inference_mode():
            output, denoised = (latent["samples"] for latent in work.outputs(recording))
        assert last != 4 or not torch.equal(output, denoised)
        assert recorder.find(denoised) is recorder.find(output)
        # ComfyUI may hand latents out in half precision.
        assert recorder.find(denoised.half()) is recorder.find(output)
        assert recorder.find(output).denoised is None and recorder.find(output).steps.denoised is None
