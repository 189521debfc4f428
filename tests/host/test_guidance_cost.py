"""What semantic guidance costs a GPU at each step: counted for SD 1.5 at full size, on torch's meta device.

There everything that would make the CPU wait for the device raises an error (see benchmarks/meter.py).
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.full_size import META, build, flash_attention
from benchmarks.meter import Meter
from goca_core.attention.record import Tokens
from goca_core.capture.guidance import together
from goca_core.capture.guidance.patch import SemanticGuidance, guide
from goca_core.capture.guidance.run import GuidanceRun
from goca_core.capture.hooks import ModelCall
from goca_core.capture.passthrough import OVERRIDE
from goca_core.capture.reduce import fused
from goca_core.guidance.semantic import REGION_RULES, Settings

from . import tiny
from .guided import TEXT, Notes, rate_of, work
from .helpers import stub_guider, words_of

pytestmark = pytest.mark.usefixtures("host")


class Sampled:
    """A sampling run of SD 1.5 on the meta device, with a positive and a negative prompt of which both are recorded."""

    def __init__(self, settings: Settings, **positive: Any) -> None:
        self.model, self.forward = build("sd15")
        self.patch = SemanticGuidance(settings)
        text = self.forward.context[:1]
        self.positive = [{"uuid": "p", "cross_attn": text, "goca_words": words_of(TEXT), **positive}]
        self.negative = [{"uuid": "n", "cross_attn": text}]
        guider = stub_guider(positive=self.positive, negative=self.negative)
        guider.model_patcher.model = self.model
        self.run: GuidanceRun = self.patch.open_run(guider, self.forward.x[:1].shape, torch.tensor([1.0, 0.0]))
        self.patch._active.append(self.run)

    def plain(self, options: dict[str, Any]) -> Tensor:
        return self.forward.run(self.model.diffusion_model, options)

    def step(self) -> Tensor:
        """One evaluation as ComfyUI makes it."""
        options = {OVERRIDE: flash_attention, "uuids": ["p", "n"]}
        self.run.begin_evaluation(None, self.forward.x, 1.0)
        call = ModelCall(self.model, self.forward.x, options, {})
        recorders = self.run.recorders(call)
        assert recorders
        with contextlib.ExitStack() as stack:
            for recorder in recorders:
                options = stack.enter_context(recorder.installed(options))
            cond, uncond = self.plain(options).chunk(2)
        self.run.commit(recorders, call)
        given = {"denoised": cond, "cond_denoised": cond, "uncond_denoised": uncond, "cond_scale": 7.5}
        out = self.patch({**given, "cond": self.positive, "uncond": self.negative})
        assert self.run.working, "something made the CPU wait for the device, or failed"
        assert out is not cond, "there were no regions"
        self.run.end_evaluation()
        return out


def measured(sampled: Sampled) -> tuple[Meter, Meter]:
    """Costs of a plain forward pass, and of a step with guidance whose indices are on the device already."""
    with torch.inference_mode():
        sampled.step()
        with Meter() as plain:
            sampled.plain({OVERRIDE: flash_attention})
        with Meter() as guided:
            out = sampled.step()
    assert out.device == META
    return plain, guided


@pytest.mark.parametrize("rule", REGION_RULES)
def test_a_step_neither_waits_nor_starts_many_kernels(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Denominators are compared with numbers once for each kind of kernel, which waits; there are no numbers here.
    monkeypatch.setattr(fused, "agrees", lambda total, call: True)
    plain, guided = measured(Sampled(Settings(rule)))
    assert guided.uploads == 0
    # 1.93 and 1.23 times when this was written
    assert guided.kernels <= {"GoCA": 2.1, "S-CFG": 1.4}[rule] * plain.kernels


def test_several_prompts_neither_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "agrees", lambda total, call: True)
    sampled = Sampled(Settings())
    masked = {**sampled.positive[0], "mask": torch.empty(1, 64, 64, device=META), "strength": 0.5}
    sampled.positive[:] = [masked, sampled.positive[0]]
    _, guided = measured(sampled)
    assert guided.uploads == 0


@pytest.mark.parametrize("rule", REGION_RULES)
@pytest.mark.parametrize("batch", [1, 2])
def test_conditionings_may_be_recorded_together(rule: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done on an accelerator: positive and negative rows as one, which gives the same guidance up to rounding."""
    built = tiny.build("sd15")

    def rates() -> list[Tensor]:
        notes = Notes()
        work(built, batch).run(notes.on(guide(built.model, Settings(rule))))
        return [rate_of(args) for args in notes.args[:1]]

    apart = rates()
    monkeypatch.setattr(together, "alone", together.grouped)
    for one, other in zip(apart, rates(), strict=True):
        # A pixel at which two words are equal up to rounding may go either way.
        assert ((one - other).abs() < 1e-3).float().mean() > 0.97
        assert one.std() > 0.01


def test_only_neighbours_of_one_length_are_recorded_together() -> None:
    def kept(*positions: int, length: int = 77) -> Tokens:
        return Tokens(positions, True, length)

    rows = {
        "p": (slice(2, 4), kept(1, 2)),
        "n": (slice(0, 2), kept(0)),
        "long": (slice(4, 6), kept(1, length=154)),
        "far": (slice(8, 10), kept(3, length=154)),
    }
    groups = together.grouped(rows)
    assert {keys: place for keys, (place, _) in groups.items()} == {
        ("n", "p"): slice(0, 4),
        ("long",): slice(4, 6),
        ("far",): slice(8, 10),
    }
    assert groups["n", "p"][1] == kept(0, 1, 2)
