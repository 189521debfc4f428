"""Finds the objects in an image of the demo model from its pixels, by flat colours and by the outlines of the shapes.

Used by editing.py and guidance.py. No model is involved. A pixel has the nearest colour of the palette. An object is a
connected piece of one colour. Its shape is the one of the six whose drawn outline, at the size and position of the piece,
covers the piece best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from goca_core.demo.scenes import COLOURS, SHAPES, Scene, SceneObject, stencil

# A pixel has a colour of the scenes if it is closer to it than to any other colour, and not further away than this.
FAR = 70.0
# Pieces below this fraction of the image are not objects.
DRAWN = 0.01
# Rotations in radians at which a shape is still recognised; shapes are drawn nearly upright.
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
        rate, z = self.yes / self.of, 1.96
        middle = (rate + z * z / (2 * self.of)) / (1 + z * z / self.of)
        half = z * math.sqrt(rate * (1 - rate) / self.of + z * z / (4 * self.of**2)) / (1 + z * z / self.of)
        return f"{rate:.1%} of {self.of} ({max(middle - half, 0.0):.1%} to {middle + half:.1%})"


def rate(found: Sequence[bool]) -> Count:
    return Count(sum(found), len(found))


def colours_of(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Index [H, W] of the palette colour at each pixel of an image [H, W, 3] in 0..255; -1 for background or no colour.

    scene: has the background that the image should have.
    """
    background = np.median(scene.image[scene.labels == 0], 0)
    known = np.array([*COLOURS.values(), background], float)
    distance = np.linalg.norm(image[:, :, None].astype(float) - known, axis=-1)
    nearest = distance.argmin(-1)
    return np.where((nearest < len(known) - 1) & (distance.min(-1) < FAR), nearest, -1)


def index(colour: str) -> int:
    return list(COLOURS).index(colour)


def pieces(where: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask [H, W] that are large enough to be an object, largest first."""
    parts, count = ndimage.label(where)
    found = [parts == number for number in range(1, count + 1)]
    return sorted((piece for piece in found if piece.mean() >= DRAWN), key=np.sum, reverse=True)


@functools.cache
def _model(shape: str, turn: float, side: int) -> tuple[int, float, float]:
    """Area of a shape drawn in the middle with a quarter of the side as radius, and its centre of mass from the middle."""
    drawn = _stencil(shape, turn, side / 2, side / 2, side / 4, side)
    row, column = ndimage.center_of_mass(drawn)
    return int(drawn.sum()), row - side / 2, column - side / 2


def _stencil(shape: str, turn: float, x: float, y: float, radius: float, side: int) -> np.ndarray:
    item = SceneObject("red", shape, x / side, y / side, radius / side, turn)
    return np.asarray(stencil(item, side, side) >= 0.5)


def outline(shape: str, turn: float, area: float, centre: tuple[float, float], side: int) -> np.ndarray:
    """A shape drawn with this area and centre of mass (row, column), in an image of this side."""
    full, row, column = _model(shape, turn, side)
    scale = math.sqrt(area / full)
    return _stencil(shape, turn, centre[1] - column * scale, centre[0] - row * scale, side / 4 * scale, side)


def likeness(piece: np.ndarray, shape: str) -> float:
    """Best intersection over union (0..1) of a piece with a shape of its size and position, over all rotations."""

    def overlap(turn: float) -> float:
        other = outline(shape, turn, piece.sum(), ndimage.center_of_mass(piece), len(piece))
        return float((piece & other).sum() / (piece | other).sum())

    return max(map(overlap, TURNS))


def shape_of(piece: np.ndarray) -> str:
    """The shape whose outline covers a piece [H, W] best."""
    return max(SHAPES, key=lambda shape: likeness(piece, shape))


def named(colours: np.ndarray, item: SceneObject) -> np.ndarray | None:
    """The largest piece that has the colour and shape of an object, or None if the object is not there."""
    found = pieces(colours == index(item.colour))
    return next((piece for piece in found if shape_of(piece) == item.shape), None)
