"""Drawn scenes with known masks, as the miniatures were trained on: one to three objects on a textured background.

plan = plan_scene(rng)                      what is where
images, labels = render(plan, 96, generator)   [F, 3, S, S] in -1..1; uint8 [F, S, S]: 0 = background, k = object k
words = caption(plan)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COLOURS = {
    "red": (0.80, 0.12, 0.12), "green": (0.10, 0.62, 0.20), "blue": (0.12, 0.25, 0.85), "yellow": (0.95, 0.85, 0.12),
    "purple": (0.55, 0.15, 0.70), "orange": (0.95, 0.50, 0.08), "white": (0.96, 0.96, 0.94), "black": (0.06, 0.06, 0.08),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
BACKGROUNDS = ("grass", "sand", "water", "snow", "wood", "bricks")
NAMES = tuple(COLOURS)
MOST = 3
_TRIES = 24


@dataclass(frozen=True)
class Plan:
    """A scene as numbers; sizes and places are fractions of the side.

    ``colours`` and ``shapes``: ``MOST`` and more different ones, of which the first ``count`` are drawn. ``speed``
    [MOST, 2]: per frame. ``order``: in which the caption names the objects.
    """

    count: int
    colours: NDArray[np.int64]
    shapes: NDArray[np.int64]
    background: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    turn: NDArray[np.float64]
    speed: NDArray[np.float64]
    order: NDArray[np.int64]

    def name(self, number: int) -> str:
        return f"{NAMES[self.colours[number]]} {SHAPES[self.shapes[number]]}"


def plan_scene(rng: np.random.Generator, moving: bool = False) -> Plan:
    count = int(rng.choice([1, 2, 3], size=1, p=[0.3, 0.45, 0.25])[0])
    colours, shapes = np.argsort(rng.random((1, len(NAMES))))[0], np.argsort(rng.random((1, len(SHAPES))))[0]
    background = int(rng.integers(len(BACKGROUNDS), size=1)[0])
    radius = rng.uniform(0.14, 0.22 if count == 3 else 0.28, MOST)  # three objects need to leave room for each other
    x, y = np.zeros(MOST), np.zeros(MOST)
    for k in range(MOST):
        r = radius[k]
        px = 0.9 * r + rng.random(_TRIES) * (1 - 1.8 * r)
        py = 0.9 * r + rng.random(_TRIES) * (1 - 1.8 * r)
        gap = np.full(_TRIES, 9.0)
        for j in range(k):
            gap = np.minimum(gap, np.hypot(px - x[j], py - y[j]) / (r + radius[j]))
        good = gap > 0.82  # one may hide a little of another
        best = int(good.argmax() if good.any() else gap.argmax())
        x[k], y[k] = px[best], py[best]
    turn = rng.uniform(-0.35, 0.35, MOST)
    angle, pace = rng.uniform(0, 2 * math.pi, MOST), rng.uniform(0.03, 0.10, MOST)
    pace = pace * (rng.random(MOST) < 0.7) if moving else 0 * pace
    speed = np.stack((np.cos(angle) * pace, np.sin(angle) * pace), -1)
    order = np.argsort(rng.random(MOST) + 9 * (np.arange(MOST) >= count))
    return Plan(count, colours, shapes, background, x, y, radius, turn, speed, order)


def caption(plan: Plan, background: bool = True, absent: bool = False) -> tuple[str, ...]:
    """The words of the caption, a comma being one of its own.

    ``background``: whether it names the background. ``absent``: whether it names, last, one more object than is drawn.
    """
    named = [int(k) for k in plan.order[: plan.count]] + ([plan.count] if absent else [])
    words: list[str] = []
    for place, k in enumerate(named):
        if place:
            words.append("and" if place == len(named) - 1 else ",")
        colour, shape = plan.name(k).split()
        words += ["an" if colour[0] in "aeiou" else "a", colour, shape]
    return (*words, *(("on", BACKGROUNDS[plan.background]) if background else ()))


# -- drawing ------------------------------------------------------------------------------------------------------------


def _distances(u: Tensor, v: Tensor) -> Tensor:
    """Signed distances, roughly, to the outlines of all shapes in the unit circle; v points down. [8, ...]"""
    r = (u * u + v * v).sqrt()
    au, av = u.abs(), v.abs()
    triangle = torch.maximum(0.866 * au - 0.5 * v, v) - 0.52
    tenth = math.pi / 5  # of a star, folded into a tenth of the circle
    folded = (torch.remainder(torch.atan2(u, -v) + tenth, 2 * tenth) - tenth).abs()
    px, py = r * torch.sin(folded), r * torch.cos(folded)
    bx, by = 0.46 * math.sin(tenth), 0.46 * math.cos(tenth)
    nx, ny = 1.0 - by, bx
    star = (px * nx + (py - 1.0) * ny) / math.hypot(nx, ny)
    hu, hv = u * 1.15, -v * 1.15 + 0.15
    q = hu * hu + hv * hv - 0.75
    curve = q * q * q - hu * hu * hv * hv * hv
    heart = curve.sign() * (curve.abs() + 1e-9).pow(1 / 3) * 0.55
    cross = torch.minimum(torch.maximum(au - 0.32, av - 0.95), torch.maximum(au - 0.95, av - 0.32))
    diamond = (au / 0.68 + av - 1) * 0.56
    return torch.stack(
        (r - 0.95, torch.maximum(au, av) - 0.80, triangle, star, heart, (r - 0.70).abs() - 0.25, cross, diamond)
    )


def _noise(side: int, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth noise [1, S, S] with a standard deviation of about 1."""
    rough = torch.randn(1, 1, cells, cells, generator=generator)
    return torch.nn.functional.interpolate(rough, size=(side, side), mode="bicubic", align_corners=False)[:, 0]


def _mix(base: tuple[float, ...], level: Tensor, scale: tuple[float, ...]) -> Tensor:
    return torch.tensor(base).view(1, 3, 1, 1) + torch.tensor(scale).view(1, 3, 1, 1) * level[:, None]


def _background(which: int, side: int, generator: torch.Generator) -> Tensor:
    """[1, 3, S, S] in 0..1"""
    line = (torch.arange(side) + 0.5) / side
    y, x = line.view(1, side, 1), line.view(1, 1, side)
    phase, tone = (torch.rand(1, 1, 1, generator=generator) for _ in range(2))
    phase = 2 * math.pi * phase
    white = torch.randn(1, side, side, generator=generator)
    cloud, grain = _noise(side, 6, generator), _noise(side, side // 3, generator)
    streak = torch.randn(1, 1, side // 8, side // 2, generator=generator)
    streak = torch.nn.functional.interpolate(streak, size=(side, side), mode="bilinear")[:, 0]
    waves = torch.sin(2 * math.pi * (7 + 4 * tone) * (y + 0.06 * torch.sin(4 * math.pi * x + phase)) + phase)
    rings = torch.sin(2 * math.pi * (5 + 3 * tone) * (y + 0.05 * cloud) + 0.8 * cloud + phase)
    rows = 5 + (tone > 0.5).float() * 2
    along = x * rows * 0.6 + torch.floor(y * rows) * 0.5 + phase
    mortar = ((torch.remainder(along, 1) < 0.10) | (torch.remainder(y * rows, 1) < 0.14)).float()[:, None]
    brick = torch.sin(12.9 * torch.floor(along) + 78.2 * torch.floor(y * rows))
    bricks = _mix((0.60, 0.30, 0.24), 0.7 * brick + 0.3 * grain, (0.06, 0.05, 0.05)) * (1 - mortar)
    found = (
        _mix((0.28, 0.50, 0.16), 0.9 * streak + 0.4 * grain, (0.07, 0.10, 0.05)),
        _mix((0.82, 0.72, 0.50), 0.9 * grain + 0.5 * cloud + 0.4 * white, (0.05, 0.05, 0.05)),
        _mix((0.20, 0.50, 0.68), 1.1 * waves + 0.4 * cloud, (0.07, 0.09, 0.09)),
        _mix((0.86, 0.89, 0.94), 0.9 * cloud + 0.3 * white, (0.05, 0.05, 0.04)),
        _mix((0.52, 0.34, 0.19), 1.0 * rings + 0.3 * grain, (0.09, 0.07, 0.05)),
        bricks + _mix((0.68, 0.66, 0.62), grain, (0.04, 0.04, 0.04)) * mortar,
    )[which]
    return (found * (0.9 + 0.2 * torch.rand(1, 1, 1, 1, generator=generator))).clamp(0, 1)


@torch.no_grad()
def render(plan: Plan, side: int, generator: torch.Generator, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Images [F, 3, S, S] in -1..1 and labels [F, S, S] of a plan."""

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    background = _background(plan.background, side, generator)
    line = (torch.arange(side) + 0.5) / side
    y, x = line.view(1, side, 1), line.view(1, 1, side)
    surfaces = []
    for k in range(MOST):  # drawn for absent objects as well, so that the random numbers of a scene stay the same
        colour = torch.tensor(COLOURS[NAMES[plan.colours[k]]]) + 0.10 * (chance(1, 3) - 0.5)
        light, phase = (2 * math.pi * chance(1, 1, 1) for _ in range(2))
        surfaces.append((colour, light, phase, 5 + 6 * chance(1, 1, 1), _noise(side, side // 4, generator)))
    images, labels = [], []
    for frame in range(frames):
        step = frame - (frames - 1) / 2
        image, label = background, torch.zeros(1, side, side, dtype=torch.uint8)
        for k in range(plan.count):
            radius, turn = float(plan.radius[k]), float(plan.turn[k])
            du = x - float(plan.x[k] + step * plan.speed[k, 0])
            dv = y - float(plan.y[k] + step * plan.speed[k, 1])
            u = (math.cos(turn) * du + math.sin(turn) * dv) / radius
            v = (math.cos(turn) * dv - math.sin(turn) * du) / radius
            cover = (0.5 - _distances(u, v)[plan.shapes[k]] * radius * side).clamp(0, 1)
            colour, light, phase, waves, noise = surfaces[k]
            shade = 1 + 0.22 * (light.cos() * u + light.sin() * v) - 0.10 * (u * u + v * v)
            shade = shade + 0.05 * torch.sin(waves * (u * light.sin() - v * light.cos()) + phase) + 0.03 * noise
            surface = colour.view(1, 3, 1, 1) * shade[:, None] + 0.06 * (shade[:, None] - 1)
            image = image * (1 - cover[:, None]) + surface.clamp(0, 1) * cover[:, None]
            label = torch.where(cover >= 0.5, torch.full_like(label, k + 1), label)
        images.append(image)
        labels.append(label)
    stack = torch.stack(images, 1)
    stack = stack + 0.015 * torch.randn(stack.shape, generator=generator)
    return (stack.clamp(0, 1) * 2 - 1)[0], torch.stack(labels, 1)[0]
