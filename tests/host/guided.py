"""Runs under semantic guidance, and what it did in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import tiny
from .device import on_cpu
from .helpers import Job, job, words_of

TEXT = "a red cat on grass"
PLAIN = {"minimum": 1.0, "maximum": 1.0}


def speaking(built: tiny.Tiny, seed: int = 1, text: str = TEXT, **extra: Any) -> Any:
    return built.conditioning(seed=seed, goca_words=words_of(text), **extra)


def work(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] = (16, 24), **options: Any) -> Job:
    return job(built, batch, size, **{"positive": speaking(built), "cfg": 5.0, "steps": 2, **options})


class Notes:
    """A post-CFG function that only takes notes, on the CPU."""

    def __init__(self) -> None:
        self.args: list[dict[str, Any]] = []

    def __call__(self, args: dict[str, Any]) -> Tensor:
        self.args.append(on_cpu(dict(args)))
        denoised: Tensor = args["denoised"]
        return denoised

    def on(self, model: Any) -> Any:
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(self)
        return patched


def push(args: dict[str, Any]) -> Tensor:
    difference: Tensor = args["cond_denoised"] - args["uncond_denoised"]
    return difference


def rate_of(args: dict[str, Any]) -> Tensor:
    """The rate [B, h, w] that guidance had, read from what came out: denoised = u + w r (c - u). 1 where nothing pushes."""
    delta = push(args).flatten(1, -3)  # some models have an axis of one frame before rows and columns
    pushed = (args["denoised"] - args["uncond_denoised"]).flatten(1, -3)
    found = (pushed * delta).sum(1) / args["cond_scale"]
    size = delta.square().sum(1)
    return torch.where(size > 0, found / size.clamp_min(1e-30), 1.0)
