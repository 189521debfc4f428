"""Boxes around masks and points inside of them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from goca_core.boxes import SHAPES, Box, boxes
from goca_core.regional import RegionalError

H, W = 37, 53


def rectangles(*parts: tuple[int, int, int, int]) -> Tensor:
    """One mask [H, W] for each (x, y, width, height)."""
    masks = torch.zeros(len(parts), H, W)
    for mask, (x, y, width, height) in zip(masks, parts, strict=True):
        mask[y : y + height, x : x + width] = 1
    return masks


def test_tight_boxes_of_each_image() -> None:
    parts = [(3, 5, 10, 4), (40, 20, 13, 17), (0, 0, 1, 1), (20, 30, 2, 7)]
    found = boxes(rectangles(*parts), "cat\ndog")
    assert found.each == ((Box(*parts[0]), Box(*parts[1])), (Box(*parts[2]), Box(*parts[3])))
    assert found.around == Box(0, 0, 53, 37)
    # Without labels each mask is one image's.
    assert [len(each) for each in boxes(rectangles(*parts)).each] == [1, 1, 1, 1]


def test_any_mask_lies_in_its_box_and_boxes_lie_in_the_image() -> None:
    generator = torch.Generator().manual_seed(5)
    for shape in SHAPES:
        for margin in (0.0, 0.2, 1.5):
            masks = (torch.rand(6, H, W, generator=generator) > 0.995).float()
            found = boxes(masks, "a\nb\nc", margin, shape)
            for box, inside in [
                (found.around, masks.any(0)),
                *zip([b for each in found.each for b in each], masks.bool(), strict=True),
            ]:
                assert min(box.x, box.y) >= 0 and box.x + box.width <= W and box.y + box.height <= H
                held = inside[box.y : box.y + box.height, box.x : box.x + box.width]
                assert held.sum() == inside.sum()


def test_margin_and_shape() -> None:
    mask = rectangles((20, 15, 8, 4))
    assert boxes(mask, margin=0.25).around == Box(18, 13, 12, 8)
    assert boxes(mask, margin=0.25, shape="square").around == Box(18, 11, 12, 12)
    wide = boxes(mask, shape="as the image").around
    assert abs(wide.width / wide.height - W / H) < 0.2 and (wide.width, wide.height) == (8, 6)
    # At a corner it is moved, and a square that does not fit is cut.
    assert boxes(rectangles((0, 0, 8, 4)), margin=0.25, shape="square").around == Box(0, 0, 12, 12)
    assert boxes(rectangles((5, 5, 45, 20)), shape="square").around == Box(5, 0, 45, 37)


def test_empty_masks_have_no_box() -> None:
    masks = rectangles((3, 5, 10, 4), (40, 20, 13, 17), (0, 0, 5, 5), (20, 30, 2, 7))
    masks[[0, 2, 3]] = 0
    found = boxes(masks, "cat\ndog")
    assert found.each == ((Box(40, 20, 13, 17),), ())
    assert json.loads(found.points_as_json()) == [{"x": 46, "y": 28}]
    nothing = boxes(torch.zeros(2, H, W), margin=0.5, shape="square")
    assert nothing.around == Box(0, 0, W, H) and nothing.each == ((), ()) and nothing.points_as_json() == "[]"


def test_points_lie_well_inside() -> None:
    """Of a ring and of two parts, too, where the centre of gravity is outside."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    distance = ((y - 18) ** 2 + (x - 26) ** 2).sqrt()
    ring = ((distance > 9) & (distance < 16)).float()
    both = rectangles((2, 2, 5, 5))[0] + rectangles((30, 10, 21, 15))[0]
    found = boxes(torch.stack((ring, both)), "ring\nboth").points
    assert ring[found[0][1], found[0][0]] == 1 and 11 <= distance[found[0][1], found[0][0]] <= 14
    assert found[1] == (40, 17)
    # Only those of the first image.
    assert len(boxes(rectangles(*[(1, 1, 9, 9)] * 6), "a\nb\nc").points) == 3


def test_soft_masks_count_from_one_half() -> None:
    mask = torch.full((1, H, W), 0.4)
    mask[0, 10:20, 30:34] = 0.6
    mask[0, 0, 0] = float("nan")
    assert boxes(mask.half()).around == Box(30, 10, 4, 10)


def test_larger_margins_hold_smaller_ones() -> None:
    mask = rectangles((30, 10, 6, 9))
    for shape in SHAPES:
        grown = [boxes(mask, margin=margin, shape=shape).around for margin in (0.0, 0.1, 0.5, 1.0, 4.0)]
        assert all(a.width <= b.width and a.height <= b.height for a, b in pairwise(grown))
        assert grown[-1] == Box(0, 0, W, H)


def test_bad_input() -> None:
    with pytest.raises(RegionalError, match="3 masks cannot be divided among 2 labels"):
        boxes(torch.ones(3, H, W), "cat\ndog")
    with pytest.raises(ValueError, match='The shape "round" is unknown; choose one of: tight, square, as the image'):
        boxes(torch.ones(1, H, W), shape="round")
    assert boxes(torch.ones(H, W)).around == Box(0, 0, W, H)
