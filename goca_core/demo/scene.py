"""What a drawn scene is: its caption, its image, its labels, and the words that they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 50),
    "green": (30, 200, 70),
    "blue": (40, 80, 230),
    "purple": (150, 50, 200),
    "pink": (250, 130, 190),
}
# The mean colour of each background.
BASE: dict[str, tuple[int, int, int]] = {
    "grass": (86, 128, 66),
    "sand": (216, 190, 138),
    "water": (70, 130, 175),
    "snow": (236, 240, 246),
    "asphalt": (92, 92, 96),
    "wood": (150, 104, 62),
}
LEAST_SIDE = 16


@dataclass(frozen=True)
class SceneObject:
    """One object: ``x, y, radius`` are fractions of the image's shorter side, ``turn`` is in radians.

    ``shape``: a shape or a thing. ``colour``: empty for a thing that has only its own colours.
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    turn: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}".strip()


@dataclass(frozen=True)
class Scene:
    """A caption, its image ``[H, W, 3]`` uint8 and labels ``[H, W]`` uint8 (0 = background, k = ``objects[k - 1]``).

    ``empty``: the background without objects, float ``[H, W, 3]`` in 0..255.
    """

    caption: str
    background: str
    objects: tuple[SceneObject, ...]
    image: np.ndarray
    labels: np.ndarray
    empty: np.ndarray


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def check_size(height: int, width: int) -> None:
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"a scene needs sides of at least {LEAST_SIDE} pixels, got {height}x{width}; ask for a larger one"
        )
