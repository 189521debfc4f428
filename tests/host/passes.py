"""Regional passes over tiny models, and the two passes that give the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from goca_core.batches import latent_frames
from goca_core.capture.conditioning import length_of
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Recorder
from goca_core.capture.regional.recorder import RegionalPass
from goca_core.capture.regional.run import RegionalPlan
from goca_core.capture.workplace import on_device
from goca_core.picture.batch import flatten
from goca_core.pipeline import MaskRequest, MaskResult, make_masks
from goca_core.regional import compose, delayed, region_weights
from goca_core.tensors import resize_bilinear

from . import tiny
from .device import CPU
from .helpers import Job, job, words_of

TEXT = "a red cat on grass under a sky of blue"
PLAN = RegionalPlan(MaskRequest("red cat\ngrass\nsky"), (("red cat", "one"), ("sky", "two")), start=0.5)
# Latents of a random model reach several hundreds.
CLOSE = {"atol": 2e-3, "rtol": 1e-4}


def speaking(built: tiny.Tiny, seed: int = 1, **extra: Any) -> Any:
    positive = built.conditioning(seed=seed, **extra)
    words = words_of(TEXT, length_of(*positive[0]))
    return [[tensor, {**own, "goca_words": words}] for tensor, own in positive]


def work(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] | None = None, **options: Any) -> Job:
    return job(built, batch, size, **{"positive": speaking(built), "steps": 4, **options})


@dataclass
class Asked:
    """A regional pass over a tiny model."""

    built: tiny.Tiny
    plan: RegionalPlan = PLAN
    own: tuple[Any, ...] | None = None
    words: Any = None

    def prompts(self) -> list[Any]:
        if self.own is not None:
            return list(self.own)
        return [self.built.conditioning(seed=11), None, self.built.conditioning(seed=12)]

    def install(self, model: Any = None) -> tuple[Any, RegionalPass]:
        made = RegionalPass(self.plan, self.prompts(), self.words)
        return made.install(model or self.built.model), made

    def reference(self, run: Job) -> tuple[Tensor, MaskResult]:
        """Two passes: the image and the masks."""
        recorder = Recorder(self.plan.window, RecordOptions(method="auto"))
        plain = run.run(recorder.install(self.built.model))["samples"]
        record = recorder.collect(plain)
        # Where the pass makes them: on another device, single pixels may differ.
        request = replace(self.plan.request, skip_absent=False)
        found = on_device(lambda place: make_masks(record, request, self.words, place=place)).to(CPU)
        parts = region_weights(flatten(found.masks), len(found.labels), None, self.plan.feather)
        if self.built.frames:
            # ComfyUI takes masks of a video as they are only at the latent's own size.
            parts = latent_frames(resize_bilinear(parts, tuple(plain.shape[-2:])), record)
            parts = parts.unflatten(0, (-1, record.frames)).movedim(1, 2)
        regional = compose(run.positive, self.prompts(), parts, self.plan.strength)
        positive = delayed(run.positive, regional, self.plan.start)
        return replace(run, positive=positive).run(self.built.model)["samples"], found
