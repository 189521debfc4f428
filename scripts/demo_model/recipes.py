"""What `train.py` trains on: for each kind of scenes the images, the noise levels, the weights of the error, the rates."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from goca_core.demo import things
from goca_core.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, corrupt, draw
from goca_core.demo.wavelet import WaveletCodec

# One caption in so many is empty, for guidance.
EMPTY = 0.1
# The fraction of images with a wrong object in the second stage, and the fraction of the schedule above which they are used.
CORRUPTED, CORRUPT_FROM = 0.4, 0.45


@dataclass
class Batch:
    """``wanted``, ``noised``: latents to predict, and those that the noise is added to (they differ while a model learns to
    repair). ``rows``: the captions as rows of the embedding table. ``step``: index of each noise level in the schedule.
    ``noise``: standard normal."""

    wanted: Tensor
    noised: Tensor
    rows: Tensor
    step: Tensor
    noise: Tensor


class Shapes:
    """64x64 scenes of shapes, drawn on the CPU. The second stage comes after the main training."""

    side, levels, width, multipliers, blocks = 64, 1, 64, (1, 2, 2), (1, 1, 1)
    defaults: ClassVar[dict] = dict(steps=6000, repair=1500, batch=12, rate=1.5e-3, average=0.999, stages=15)
    words = " ".join([*COLOURS, *SHAPES, *BACKGROUNDS, "a an and on ,"])
    # The learning rate falls over this fraction of the main training; in the second stage, its peak is a fraction.
    cooling, repair_rate = 0.4, 0.4
    # Fractions of the schedule: two thirds of the draws come from 40 to 90 percent of it, where positions are visible and
    # shapes settle. In the second stage, a fifth comes from the start of sampling, where colours settle.
    table = ((0, 0.28, 0.95, 1), (0, 0.4, 0.9, 1)), ((0, 0.22, 0.80, 1), (0, 0.4, 0.85, 1))

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.codec = WaveletCodec(self.levels)
        self.whole = options.steps + options.repair

    def measure_spread(self) -> None:
        return None

    def stage_marks(self, many: int) -> list[float]:
        return [(number + 1) / many for number in range(many)]

    def progress(self, step: int, _seconds: float) -> float:
        return step / self.whole

    def repairs(self, step: int, _progress: float) -> bool:
        return step >= self.options.steps

    def rate(self, step: int, _progress: float) -> float:
        """The learning rate: it warms up, stays constant, and falls to zero over the last part.

        While it is constant, a run can still be made longer. In the second stage it warms up again and falls at once.
        """
        steps, warmup = self.options.steps, self.options.warmup
        if self.repairs(step, 0):
            left = 1 - (step - steps) / self.options.repair
            return self.repair_rate * self.options.rate * min(1.0, (step - steps + 1) / warmup, left)
        return self.options.rate * min(1.0, (step + 1) / warmup, (steps - step) / (steps * self.cooling))

    def batch(self, step: int, repairs: bool, text: Any) -> Batch:
        # Seeded by the step, so that a resumed run uses the same images as an uninterrupted one.
        rng = np.random.default_rng([self.options.seed, step])
        # Scenes with a single object teach shapes fastest, because there is nothing else to mix it up with.
        drawn = [draw(rng, count=1 if place % 3 == 0 else None) for place in range(self.options.batch)]
        captions = [scene.caption if rng.random() >= EMPTY else "" for scene in drawn]
        wanted = noised = self._encode([scene.image for scene in drawn])
        if repairs:
            noised = self._encode([corrupt(scene, rng) for scene in drawn])
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        many = len(drawn)
        # One draw per equal slice of the schedule has less variance than independent draws.
        slices = torch.arange(many) + torch.rand(many, generator=generator)
        fraction = torch.from_numpy(np.interp((slices / many).double().numpy(), *self.table[repairs]))
        noise = torch.randn(wanted.shape, generator=generator)
        if repairs:
            wrong = (torch.rand(many, generator=generator) < CORRUPTED) & (fraction > CORRUPT_FROM)
            noised = torch.where(wrong.view(-1, 1, 1, 1).to(self.device), noised, wanted)
        index = (fraction * 1000).long().clamp_max(999)
        return Batch(
            wanted, noised, text.tokens(captions).to(self.device), index.to(self.device), noise.to(self.device)
        )

    def _encode(self, images: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return self.codec.encode(pixels.float() / 127.5 - 1).to(self.device)

    def error(self, squared: Tensor, sigma: Tensor) -> Tensor:
        """The weighted mean of squared errors [B, C, H, W] at noise levels [B]."""
        # Weighted by alpha, because at high noise most of the error is random. The smooth band counts as much as the details.
        alpha = 1 / (1 + sigma**2).sqrt()
        smooth, details = (alpha.view(-1, 1, 1, 1) * squared).split((3, 9), 1)
        return (smooth.mean() + details.mean()) / 2


class Things:
    """Scenes of everyday things, planned and drawn on the device. The second stage is the last part of the run."""

    side, levels, width, multipliers, blocks = 128, 2, 128, (1, 1, 1), (1, 2, 1)
    defaults: ClassVar[dict] = dict(steps=None, repair=0, batch=256, rate=3e-3, average=0.998, stages=8)
    words = " ".join(things.WORDS)
    # The learning rate falls from here on, and from here on some images have a wrong object.
    cooling_from, repair_from = 0.5, 0.6
    # Noise levels (sigma) by quantile. Details have a spread of 0.02 to 0.15 and are decided below 0.4, objects above.
    table = (
        ((0, 0.08, 0.28, 0.90, 1), (0.0292, 0.1, 0.4, 5, 14.6)),
        ((0, 0.07, 0.25, 0.80, 1), (0.0292, 0.1, 0.4, 5, 14.6)),
    )

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.side = options.side or self.side
        self.codec = WaveletCodec(self.levels).to(device)
        self.renderer = things.Renderer(device, self.side, self.side)
        self.spread = torch.ones(self.codec.channels, device=device)
        self.row_of_word: Tensor | None = None
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = (1 - betas).cumprod(0)
        self.log_sigmas = ((1 - kept) / kept).sqrt().log().float().to(device)
        # Made here, because a copy to the device in every step would make the CPU wait.
        self.tables = [
            [torch.tensor(edges).to(device), torch.tensor(levels).log().to(device)] for edges, levels in self.table
        ]

    def measure_spread(self) -> Tensor:
        """The spread of each latent channel, over scenes that are not trained on."""
        seeds = -1 - torch.arange(512, device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        latents = []
        for part in seeds.split(64):
            plan = things.plan(part, self.side, self.side)
            latents.append(self._encode(plan, self.renderer.backgrounds(plan, generator), plan.sprite))
        found: Tensor = torch.cat(latents).std((0, 2, 3)).clamp_min(0.01)
        return found

    def use_spread(self, spread: Tensor) -> None:
        self.spread = spread

    def stage_marks(self, many: int) -> list[float]:
        return [1.75 ** (number + 1 - many) for number in range(many)]

    def progress(self, step: int, seconds: float) -> float:
        done = step / self.options.steps if self.options.steps else 0.0
        return max(done, seconds / (60 * self.options.minutes)) if self.options.minutes else done

    def repairs(self, _step: int, progress: float) -> bool:
        return progress > self.repair_from

    def rate(self, step: int, progress: float) -> float:
        left = min(1.0, (1 - progress) / (1 - self.cooling_from))
        return self.options.rate * min(1.0, (step + 1) / self.options.warmup) * max(0.0, left)

    def batch(self, step: int, repairs: bool, text: Any) -> Batch:
        many = self.options.batch
        # Seeded by the step, so that a resumed run uses the same scenes as an uninterrupted one.
        seeds = torch.arange(many, device=self.device) + (self.options.seed << 40) + step * many
        generator = torch.Generator(self.device).manual_seed(self.options.seed * 1_000_003 + step)

        def random() -> Tensor:
            return torch.rand(many, generator=generator, device=self.device)

        plan = things.plan(seeds, self.side, self.side)
        empty = self.renderer.backgrounds(plan, generator)
        wanted = noised = self._encode(plan, empty, plan.sprite)
        # One draw per equal slice of the noise levels has less variance than independent draws.
        quantile = (torch.arange(many, device=self.device) + random()) / many
        index = self._schedule(quantile, repairs)
        if repairs:
            wrong = (random() < CORRUPTED) & (index > CORRUPT_FROM * 1000)
            noised = torch.where(wrong.view(-1, 1, 1, 1), self._encode(plan, empty, plan.wrong), wanted)
        noise = torch.randn(wanted.shape, generator=generator, device=self.device)
        rows = self._rows(plan.words, random() < EMPTY, text)
        return Batch(wanted, noised, rows, index, noise)

    def _encode(self, plan: things.Plan, empty: Tensor, sprite: Tensor) -> Tensor:
        return self.codec.encode(self.renderer.compose(empty, sprite, plan.place)[0] * 2 - 1)

    def _schedule(self, quantile: Tensor, repairs: bool) -> Tensor:
        """Indices of noise levels, [B]."""
        edges, levels = self.tables[repairs]
        part = torch.searchsorted(edges, quantile.clamp(1e-6, 1 - 1e-6)) - 1
        inside = (quantile - edges[part]) / (edges[part + 1] - edges[part])
        level = torch.lerp(levels[part], levels[part + 1], inside)
        return torch.searchsorted(self.log_sigmas, level).clamp_max(999)

    def _rows(self, words: Tensor, silent: Tensor, text: Any) -> Tensor:
        """The rows of the embedding table that ComfyUI's tokenizer gives for the captions, [B, 77]."""
        if self.row_of_word is None:
            start, *_, end = text.tokens([""])[0].tolist()
            found = [text.tokens([word])[0] for word in things.WORDS]
            assert all(row[2] == end for row in found), "a word of the captions has more than one token"
            self.row_of_word = torch.tensor([*(int(row[1]) for row in found), end], device=self.device)
            self.template = torch.full((1, 77), end, device=self.device)
            self.template[0, 0] = start
        rows = self.template.repeat(len(words), 1)
        words = torch.where(silent[:, None], -1, words)
        rows[:, 1 : 1 + words.shape[1]] = self.row_of_word[words]
        return rows

    def error(self, squared: Tensor, sigma: Tensor) -> Tensor:
        """The weighted mean of squared errors [B, C, H, W] at noise levels [B]."""
        # At high noise most of the error is random, for details already below the noise that hides objects.
        alpha = 1 / (1 + sigma[:, None] ** 2 / self.spread).sqrt()
        # An error counts by the spread of its channel: the smooth band for a half of all, tiny details for little.
        return (squared.mean((2, 3)) * alpha * (self.spread / self.spread.sum())).sum(1).mean()


RECIPES = {"shapes": Shapes, "things": Things}
