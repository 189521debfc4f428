"""Patterns on the objects of drawn scenes: what the demo model's LoRAs are trained to generate, and how to recognise it.

A striped object has white stripes, a dotted one black dots. So the pixels of an object say which of them it has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goca_core.demo.scenes import Scene, SceneObject, stencil

PERIOD, DOTS = 8, 10  # pixels from stripe to stripe, and from dot to dot
_WHITE, _BLACK = np.full(3, 250.0), np.full(3, 10.0)
# An object has a pattern if the mark covers at least the first share of it, and has not if it covers less than the second.
MARKED, CLEAN = 0.14, 0.06


def _stripes(rows: np.ndarray, _columns: np.ndarray) -> np.ndarray:
    return rows % PERIOD < PERIOD / 2


def _dots(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    away = [side % DOTS - DOTS / 2 for side in (rows, columns)]
    return away[0] ** 2 + away[1] ** 2 < (DOTS * 0.36) ** 2


Pattern = tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray]
PATTERNS: dict[str, Pattern] = {"striped": (_stripes, _WHITE), "dotted": (_dots, _BLACK)}


def marked(image: np.ndarray, items: tuple[SceneObject, ...], pattern: str) -> np.ndarray:
    """An image [H, W, 3] in 0..255 with a pattern on these of its objects."""
    mark, colour = PATTERNS[pattern]
    height, width = image.shape[:2]
    side = min(height, width)
    rows, columns = np.mgrid[0:height, 0:width]
    made = image.astype(np.float32)
    for item in items:
        # The pattern moves with the object.
        where = mark(rows - round(item.y * side), columns - round(item.x * side))
        cover = (stencil(item, height, width) * where)[..., None]
        made = made * (1 - cover) + colour.astype(np.float32) * cover
    return np.clip(made, 0, 255).astype(np.uint8)


def patterned(scene: Scene, pattern: str) -> np.ndarray:
    """The image of a scene with a pattern on all of its objects."""
    return marked(scene.image, scene.objects, pattern)


def shares(image: np.ndarray, pixels: np.ndarray, colour: np.ndarray) -> dict[str, float]:
    """The share of an object's pixels that each pattern's mark covers.

    image: [H, W, 3] in 0..255. pixels: bool [H, W], those of the object. colour: [3], of the object; a pixel is marked if it
    is closer to the mark than to this.
    """
    own = image[pixels].astype(np.float32)
    if not len(own):
        return dict.fromkeys(PATTERNS, 0.0)
    distance = {name: np.linalg.norm(own - mark, axis=-1) for name, (_, mark) in PATTERNS.items()}
    plain = np.linalg.norm(own - colour, axis=-1)
    return {name: float(np.mean((away < plain) & all_others(distance, name))) for name, away in distance.items()}


def all_others(distance: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Whether a mark is nearer than every other."""
    found: np.ndarray = np.all([distance[name] < away for other, away in distance.items() if other != name], 0)
    return found
