"""What is in a picture of the demo model, told by its pixels: flat colours, and outlines that are those of a shape.

Used by editing.py and guidance.py. No model looks: a pixel has the colour of the palette that it is nearest to, a thing is a
connected piece of one colour, and its shape is the one of the six whose drawn outline, at the piece's size and place, covers
it best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from boot import use
from scipy import ndimage

# Pixels count as of a colour of the scenes when they are nearer to it than to any other and not far from it.
FAR = 70.0
# Smaller than this share of the picture nothing was drawn.
DRAWN = 0.01
# Turns, in radians, at which a thing is still of its shape; they are drawn nearly upright.
TURNS = tuple(np.linspace(-0.35, 0.35, 7).tolist())


@dataclass
class Count:
    """Successes among trials."""

    yes: int = 0
    of: int = 0

    def add(self, success: bool) -> None:
        self.yes, self.of = self.yes + bool(success), self.of + 1

    def __str__(self) -> str:
        """The rate with its 95 % interval (Wilson)."""
        if not self.of:
            return "none"
        share, z = self.yes / self.of, 1.96
        middle = (share + z * z / (2 * self.of)) / (1 + z * z / self.of)
        half = z * math.sqrt(share * (1 - share) / self.of + z * z / (4 * self.of**2)) / (1 + z * z / self.of)
        return f"{share:.1%} of {self.of} ({middle - half:.1%} to {middle + half:.1%})"


def rate(found: Sequence[bool]) -> Count:
    return Count(sum(found), len(found))


def colours_of(picture: np.ndarray, scene: Any) -> np.ndarray:
    """Index [H, W] of the palette's colour at each pixel of a picture [H, W, 3] of 0..255, -1 for ground or nothing.

    scene: its ground is what the picture's should be.
    """
    ground = np.median(scene.image[scene.labels == 0], 0)
    known = np.array([*use("goca_core.demo.scenes").COLOURS.values(), ground], float)
    distance = np.linalg.norm(picture[:, :, None].astype(float) - known, axis=-1)
    nearest = distance.argmin(-1)
    return np.where((nearest < len(known) - 1) & (distance.min(-1) < FAR), nearest, -1)


def index(colour: str) -> int:
    return list(use("goca_core.demo.scenes").COLOURS).index(colour)


def pieces(where: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask [H, W] that are large enough to be a thing, largest first."""
    parts, count = ndimage.label(where)
    found = [parts == number for number in range(1, count + 1)]
    return sorted((piece for piece in found if piece.mean() >= DRAWN), key=np.sum, reverse=True)


@functools.cache
def _model(shape: str, turn: float, side: int) -> tuple[int, float, float]:
    """Area of a shape drawn in the middle at a quarter of the side, and its centre of mass against the middle."""
    drawn = _stencil(shape, turn, side / 2, side / 2, side / 4, side)
    row, column = ndimage.center_of_mass(drawn)
    return int(drawn.sum()), row - side / 2, column - side / 2


def _stencil(shape: str, turn: float, x: float, y: float, radius: float, side: int) -> np.ndarray:
    scenes = use("goca_core.demo.scenes")
    thing = scenes.Thing("red", shape, x / side, y / side, radius / side, turn)
    return np.asarray(scenes.stencil(thing, side, side) >= 0.5)


def outline(shape: str, turn: float, area: float, centre: tuple[float, float], side: int) -> np.ndarray:
    """A shape as it is drawn, with this area and centre of mass (row, column), in a picture of this side."""
    full, row, column = _model(shape, turn, side)
    scale = math.sqrt(area / full)
    return _stencil(shape, turn, centre[1] - column * scale, centre[0] - row * scale, side / 4 * scale, side)


def likeness(piece: np.ndarray, shape: str) -> float:
    """How well a shape of the piece's size and place covers it, over the turns: intersection over union, 0..1."""

    def overlap(turn: float) -> float:
        other = outline(shape, turn, piece.sum(), ndimage.center_of_mass(piece), len(piece))
        return float((piece & other).sum() / (piece | other).sum())

    return max(map(overlap, TURNS))


def shape_of(piece: np.ndarray) -> str:
    """The shape whose outline covers a piece [H, W] best."""
    return max(use("goca_core.demo.scenes").SHAPES, key=lambda shape: likeness(piece, shape))


def named(colours: np.ndarray, thing: Any) -> np.ndarray | None:
    """The largest piece of a thing's colour that has its shape, or None: the thing is there, as it is named."""
    found = pieces(colours == index(thing.colour))
    return next((piece for piece in found if shape_of(piece) == thing.shape), None)
