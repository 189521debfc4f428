"""What a run with a recorder waits for: the noise levels of few evaluations, and of none once everything is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.record import Attention
from goca_core.capture import hooks
from goca_core.capture.guidance.patch import guide
from goca_core.capture.recorder import Window, record
from goca_core.capture.steps import Steps, noise_level
from goca_core.guidance.semantic import Settings

from . import guided, tiny
from .helpers import Job, job

pytestmark = pytest.mark.usefixtures("host")

STEPS = 10
MIDDLE = Window(False, 0.5, 0.8, 1)
# The most levels that are read of ten steps for one of them in the middle, in samplers that evaluate a level once or twice.
READ = {
    "euler": 3, "euler_ancestral": 3, "ddim": 3, "dpmpp_2m": 3, "dpmpp_3m_sde": 3, "lcm": 3, "res_multistep": 3,
    "er_sde": 3, "heun": 5, "heunpp2": 7, "dpmpp_sde": 5,
}  # fmt: skip
# Samplers whose every level is read until everything is recorded.
OTHERS = ("uni_pc", "dpm_2", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "seeds_2", "sa_solver")


class Levels:
    """The levels that were read, and how many evaluations there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[float] = []
        self.evaluations = 0
        begin = hooks.SamplingRun.begin_evaluation

        def read(timestep: Tensor | float) -> float:
            self.read.append(noise_level(timestep))
            return self.read[-1]

        def begun(run: Any, *args: Any) -> None:
            self.evaluations += 1
            begin(run, *args)

        monkeypatch.setattr(hooks, "noise_level", read)
        monkeypatch.setattr(hooks.SamplingRun, "begin_evaluation", begun)


def recorded(work: Job, model: Any, window: Window) -> Attention:
    recording, recorder = record(model, window)
    torch.manual_seed(7)
    return recorder.collect(work.run(recording)["samples"])


def assert_same(one: Attention, other: Attention) -> None:
    assert one.sigmas == other.sigmas
    for first, second in zip(one.layers, other.layers, strict=True):
        assert all(torch.equal(value, second.maps[name]) for name, value in first.maps.items())


@pytest.mark.parametrize("sampler", [*READ, *OTHERS])
@pytest.mark.parametrize("window", [MIDDLE, Window(), Window(False, 0.3, 0.9, 3)], ids=["one", "auto", "three"])
def test_levels_that_are_not_read_change_nothing(sampler: str, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    work = job(built, sampler=sampler, steps=STEPS, cfg=1.0)
    levels = Levels(monkeypatch)
    few = recorded(work, built.model, window)
    read, evaluations = len(levels.read), levels.evaluations
    with monkeypatch.context() as patched:
        patched.setattr(hooks, "steps_of", lambda sampler, levels: Steps("", "", levels))
        every = recorded(work, built.model, window)
    assert_same(few, every)
    assert read <= len(levels.read) - read
    assert read < evaluations or window != MIDDLE
    if window == MIDDLE and sampler in READ:
        assert read <= READ[sampler]


@pytest.mark.parametrize("late", [True, False])
def test_another_schedule_than_the_run_was_told_is_read(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper of another node may give the sampler other levels."""
    from comfy.patcher_extension import WrappersMP

    def later(executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        other = sigmas / 3 if late else torch.cat((sigmas[:1], sigmas[5:]))
        return executor(noise, latent, sampler, other, *args, **kwargs)

    built = tiny.build("sd15")
    work = job(built, steps=STEPS, cfg=1.0)

    def run() -> Attention:
        recording, recorder = record(built.model, MIDDLE)
        recording.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "later", later)
        return recorder.collect(work.run(recording)["samples"])

    few = run()
    monkeypatch.setattr(hooks, "steps_of", lambda sampler, levels: Steps("", "", levels))
    assert_same(few, run())


def test_guidance_of_every_step_reads_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    levels = Levels(monkeypatch)
    guided.work(built).run(guide(built.model, Settings()))
    assert levels.evaluations and not levels.read
    guided.work(built).run(guide(built.model, Settings(), 0.2, 0.8))
    assert levels.read
