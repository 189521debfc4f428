"""The rectangles around masks and a point inside of each, in the forms that nodes for cropping and for SAM 3 take."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .regional import count_labels, parse_labels
from .tensors import finite

SHAPES = ("tight", "square", "as the image")
# From here on a pixel belongs to a mask, as in the nodes of ComfyUI that round.
_LEVEL = 0.5


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    >>> Box(4, 2, 10, 6).as_dict()
    {'x': 4, 'y': 2, 'width': 10, 'height': 6}
    """

    x: int
    y: int
    width: int
    height: int

    def as_dict(self) -> dict[str, int]:
        """As ComfyUI's wire type BOUNDING_BOX has it."""
        return {"x": self.x, "y": self.y, "width": self.width, "height": self.height}


@dataclass(frozen=True)
class Boxes:
    """``around``: one box around all masks. ``each``: for each image those of its masks that are not empty. ``points``: a
    pixel well inside of each mask of the first image that is not empty.
    """

    around: Box
    each: tuple[tuple[Box, ...], ...]
    points: tuple[tuple[int, int], ...]

    def points_as_json(self) -> str:
        """As SAM3 Detect takes them."""
        return json.dumps([{"x": x, "y": y} for x, y in self.points])


def boxes(masks: Tensor, labels: str = "", margin: float = 0.0, shape: str = "tight") -> Boxes:
    """The boxes around masks [B * K, H, W], image by image.

    labels: K lines, or empty (K = 1). margin: what is added on each side, as a fraction of the box's longer side. shape: one
    of `SHAPES`. Boxes stay inside of the image: they are moved, and cut where they are larger than it. Without a pixel in any
    mask the box around them is the whole image. Raises RegionalError when labels and masks do not fit together.
    """
    if shape not in SHAPES:
        raise ValueError(f'The shape "{shape}" is unknown; choose one of: {", ".join(SHAPES)}.')
    masks = masks.reshape(-1, *masks.shape[-2:])
    names = parse_labels(labels)
    count = len(count_labels(masks, names)) if names else 1
    inside = finite(masks.float()) > _LEVEL
    height, width = inside.shape[-2:]

    def shaped(tight: Box) -> Box:
        return _shaped(tight, margin, shape, height, width)

    found = [_tight(mask) for mask in inside]
    around = _tight(inside.any(0))
    each = [tuple(shaped(box) for box in found[first : first + count] if box) for first in range(0, len(found), count)]
    points = tuple(_deepest(mask) for mask, box in zip(inside[:count], found, strict=False) if box)
    return Boxes(shaped(around) if around else Box(0, 0, width, height), tuple(each), points)


def _tight(mask: Tensor) -> Box | None:
    """The smallest box around the pixels of a mask [H, W]; None if there are none."""
    rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return None
    return Box(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)


def _shaped(box: Box, margin: float, shape: str, height: int, width: int) -> Box:
    more = 2 * margin * max(box.width, box.height)
    wide, high = box.width + more, box.height + more
    if shape != "tight":
        ratio = 1.0 if shape == "square" else width / height
        wide, high = max(wide, high * ratio), max(high, wide / ratio)
    x, wide = _placed(box.x, box.width, wide, width)
    y, high = _placed(box.y, box.height, high, height)
    return Box(x, y, wide, high)


def _placed(start: int, side: int, wanted: float, limit: int) -> tuple[int, int]:
    """Start and length of a stretch with the same centre and the wanted length, moved and cut to lie within the limit."""
    length = min(math.ceil(wanted - 1e-6), limit)
    first = math.floor(start + side / 2 - length / 2)
    return min(max(first, 0), limit - length), length


def _deepest(mask: Tensor) -> tuple[int, int]:
    """The pixel (x, y) of a mask [H, W] with the largest square of the mask around it; of several the one nearest to their mean.

    The centre of gravity of a ring or of two parts is not in the mask, this pixel always is.
    """
    sums = torch.nn.functional.pad(mask.to(torch.int64).cumsum(0).cumsum(1), (1, 0, 1, 0))

    def centres(reach: int) -> Tensor:
        """The pixels [N, 2] around which a square of 2 * reach + 1 pixels a side lies in the mask."""
        side = 2 * reach + 1
        held = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        return (held == side * side).nonzero() + reach

    low, high = 0, (min(mask.shape) - 1) // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(centres(middle)) else (low, middle - 1)
    found = centres(low)
    distance = (found - found.double().mean(0)).square().sum(1)
    y, x = found[int(distance.argmin())].tolist()
    return x, y
