"""Finds the objects of an image and says which pattern each of them has, and why an image does not count as right.

Used by lora.py. An object is looked for where it is in the image that is judged, because a LoRA may move it: the pixels of its
colour, with the marks of a pattern closed, and the outline of its shape laid over them. A thin object with both patterns has
too little of its own colour left for that; it is there if marks and colour cover where it was without LoRAs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from benchmarks.judging import TURNS, index, outline, pieces
from goca_core.demo.scenes import COLOURS, Scene, SceneObject
from scripts.demo_model.patterns import CLEAN, MARKED, PATTERNS, PERIOD, shares

NAMES = tuple(PATTERNS)
# A piece is an object if its outline has at least this intersection over union with it.
ALIKE = 0.55
# An object that has no such piece is there if its colour and marks cover the first share of its pixels, and the colour the second.
COVERED, VISIBLE = 0.85, 0.05
# An object has left its mask if less than this share of its pixels is in there.
INSIDE = 0.6
# Wide enough to close stripes and dots.
_CLOSING = PERIOD * 3 // 8

# Why an image is not right, the first that applies to one of its objects.
CAUSES = ("object missing", "object outside its mask", "own pattern absent", "other's pattern on it")


@dataclass(frozen=True)
class Judged:
    """One object of an image: the share of its pixels that each pattern's mark covers, and that is inside its mask.

    ``missing``: it was not found, and the other values say nothing.
    """

    shares: dict[str, float]
    inside: float = 1.0
    missing: bool = False


def find(image: np.ndarray, scene: Scene, item: SceneObject, before: np.ndarray) -> np.ndarray | None:
    """The pixels of an object, bool [H, W], without its edge, or None if it is not there.

    image: [H, W, 3] in 0..255. before: bool [H, W], where the object is without LoRAs.
    """
    background = np.median(scene.image[scene.labels == 0], 0)
    known = np.array([*COLOURS.values(), background, *(mark for _, mark in PATTERNS.values())], float)
    nearest = np.linalg.norm(image[:, :, None].astype(float) - known, axis=-1).argmin(-1)
    own = nearest == index(item.colour)
    found = _outlined(own, item.shape)
    # Colours are mixed at the edge.
    inner = ndimage.binary_erosion(before if found is None else found)
    if found is None and ((own | (nearest > len(COLOURS)))[inner].mean() < COVERED or own[inner].mean() < VISIBLE):
        return None
    return inner if inner.any() else None


def _outlined(where: np.ndarray, shape: str) -> np.ndarray | None:
    """The outline of a shape over the largest piece of some pixels, or None if that has another shape."""
    offsets = np.arange(-_CLOSING, _CLOSING + 1)
    ball = np.hypot(offsets[:, None], offsets) <= _CLOSING
    room = 2 * _CLOSING
    closed = ndimage.binary_closing(np.pad(where, room), ball)[room:-room, room:-room]
    piece = next(iter(pieces(ndimage.binary_fill_holes(closed))), None)
    if piece is None:
        return None
    centre = ndimage.center_of_mass(piece)
    drawn = [outline(shape, turn, piece.sum(), centre, len(piece)) for turn in TURNS]
    likeness = [float((piece & each).sum() / (piece | each).sum()) for each in drawn]
    best = int(np.argmax(likeness))
    return drawn[best] if likeness[best] >= ALIKE else None


def judge(image: np.ndarray, scene: Scene, before: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[Judged]:
    """The objects of an image. Of each: where it is without LoRAs, and its mask, bool [H, W]."""
    result = []
    for item, own, mask in zip(scene.objects, before, masks, strict=True):
        where = find(image, scene, item, own)
        if where is None:
            result.append(Judged(dict.fromkeys(NAMES, 0.0), missing=True))
            continue
        covered = shares(image, where, np.asarray(COLOURS[item.colour], np.float32))
        result.append(Judged(covered, float(mask[where].mean())))
    return result


def own_patterns(objects: Sequence[Judged]) -> bool:
    """Whether all objects are there, each with its own pattern: the first pattern for the first object."""
    return all(not each.missing and each.shares[NAMES[n]] >= MARKED for n, each in enumerate(objects))


def no_other_patterns(objects: Sequence[Judged]) -> bool:
    """Whether all objects are there, each without the other's pattern."""
    return all(not each.missing and each.shares[NAMES[1 - n]] < CLEAN for n, each in enumerate(objects))


def cause(objects: Sequence[Judged]) -> str | None:
    """One of `CAUSES`, or None if the image is right."""
    if own_patterns(objects) and no_other_patterns(objects):
        return None
    if any(each.missing for each in objects):
        return CAUSES[0]
    if any(each.inside < INSIDE for each in objects):
        return CAUSES[1]
    return CAUSES[2] if not own_patterns(objects) else CAUSES[3]
