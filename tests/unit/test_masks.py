from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core import masks


def test_rules() -> None:
    background = torch.tensor([[[0.2, 0.6, 0.9]]])
    scores = torch.full((1, 2, 1, 3), 0.55)
    expected = {"offset": [0.5, 0.9, 1.2], "vanilla": [0.3] * 3, "max": [0.3, 0.6, 0.9], "exact": [0.2, 0.6, 0.9]}
    expected["avg"] = [0.25, 0.45, 0.6]
    for rule in masks.BACKGROUND_RULES:
        level = masks.background_level(scores, background, rule, 0.3)
        torch.testing.assert_close(level[0, 0], torch.tensor(expected[rule]))
        labels = masks.assign(scores, background, rule, 0.3)
        assert labels.dtype == torch.int64
        assert labels[0, 0].tolist() == [int(b < 0.55) for b in expected[rule]]
        binary = masks.threshold(scores, background, rule, 0.3)
        assert binary.dtype == torch.bool
        assert binary[0, 1, 0].tolist() == [b < 0.55 for b in expected[rule]]


def test_no_background_is_a_map_of_zeros() -> None:
    scores = torch.rand(2, 3, 4, 5)
    for rule in masks.BACKGROUND_RULES:
        zeros = masks.assign(scores, torch.zeros(2, 4, 5), rule, 0.4)
        assert torch.equal(masks.assign(scores, None, rule, 0.4), zeros)


def test_ties_go_to_the_background_then_to_the_first() -> None:
    scores = torch.tensor([0.5, 0.7, 0.7]).reshape(1, 3, 1, 1)
    assert masks.assign(scores, theta=0.7).item() == 0
    assert masks.assign(scores, theta=0.6).item() == 2
    assert not masks.threshold(scores, theta=0.7).any()
    assert masks.assign(torch.zeros(1, 3, 1, 1)).item() == 0


def test_thresholds_that_nobody_chose() -> None:
    """A partition asks for more than the background, independent masks for more than one half."""
    scores = torch.tensor([0.4, 0.6]).reshape(1, 2, 1, 1)
    assert masks.assign(scores).item() == 2 and masks.assign(scores, scores[:, 1]).item() == 0
    assert masks.threshold(scores).flatten().tolist() == [False, True]


def test_assign_batch_shape_and_dtype(rng: torch.Generator) -> None:
    scores = torch.rand(2, 3, 4, 7, generator=rng)
    background = torch.rand(2, 4, 7, generator=rng)
    labels = masks.assign(scores, background, theta=-0.2)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    for i in (0, 1):
        assert torch.equal(masks.assign(scores[i : i + 1], background[i : i + 1], theta=-0.2)[0], labels[i])
    assert torch.equal(masks.assign(scores.mT, background.mT, theta=-0.2).mT, labels)
    half = scores.half()
    assert torch.equal(masks.assign(half, background), masks.assign(half.float(), background))
    scores[0, 0] = torch.nan
    assert not (masks.assign(scores, background)[0] == 1).any(), "an undefined map wins no pixel"


def test_one_hot() -> None:
    labels = torch.tensor([[[0, 1], [3, 1]]])
    actual = masks.one_hot(labels, 3)
    assert actual.dtype == torch.float32
    assert actual[0].tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 0]], [[0, 0], [1, 0]]]
    assert masks.one_hot(labels, 5).shape == (1, 5, 2, 2)
    with pytest.raises(ValueError, match=r"^labels run from 0 to 3: expected 0 .* were made from\.$"):
        masks.one_hot(labels, 2)
    with pytest.raises(ValueError, match="labels run from -1"):
        masks.one_hot(labels - 1, 3)


def test_masks_made_after_resizing_are_binary(rng: torch.Generator) -> None:
    scores = masks.resize_scores(torch.rand(1, 3, 5, 7, generator=rng), (33, 50))
    assert scores.shape == (1, 3, 33, 50)
    made = masks.one_hot(masks.assign(scores, theta=0.5), 3)
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert made.sum(1).max() == 1


def test_smooth(rng: torch.Generator) -> None:
    maps = (torch.rand(2, 2, 9, 12, generator=rng) > 0.5).float()
    actual = masks.smooth(maps, 1.5)
    torch.testing.assert_close(actual.sum((2, 3)), maps.sum((2, 3)))
    assert actual.min() >= 0 and actual.max() <= 1
    assert actual.var() < maps.var() / 2
    torch.testing.assert_close(masks.smooth(maps[1:], 1.5), actual[1:])
    torch.testing.assert_close(masks.smooth(maps.mT, 1.5).mT, actual)
    torch.testing.assert_close(masks.smooth(maps[0, 0], 1.5), actual[0, 0])
    # Sigma is that of a Gaussian: what a single pixel becomes has its variance, along both axes.
    for sigma in (0.7, 1.0, 2.0):
        dot = torch.zeros(1, 31, 41)
        dot[0, 15, 20] = 1
        rows, columns = masks.smooth(dot, sigma)[0].sum(1), masks.smooth(dot, sigma)[0].sum(0)
        for spread, centre in ((rows, 15), (columns, 20)):
            away = (torch.arange(len(spread)) - centre).square()
            assert float((spread * away).sum()) == pytest.approx(sigma**2, rel=0.02)
    same = masks.smooth(maps, 0)
    assert torch.equal(same, maps) and same.data_ptr() != maps.data_ptr()
    assert masks.smooth(maps.half(), 1.0).dtype == torch.float32
    assert torch.isfinite(masks.smooth(torch.full((1, 1, 3, 3), torch.nan), 1.0)).all()
    with pytest.raises(ValueError, match="sigma is -1"):
        masks.smooth(maps, -1)


def test_largest_component() -> None:
    mask = torch.tensor(
        [
            [1, 1, 0, 0, 0, 1],
            [0, 0, 1, 0, 0, 1],  # joined to the first row by a corner
            [0, 0, 0, 0, 0, 0],
            [1, 0, 0, 1, 1, 0],
        ]
    )
    expected = torch.zeros_like(mask)
    expected[0, :2] = expected[1, 2] = 1
    maps = torch.stack([mask, torch.zeros_like(mask), torch.ones_like(mask)])[None].float()
    actual = masks.largest_component(maps)
    assert actual.dtype == maps.dtype
    assert torch.equal(actual[0], torch.stack([expected, torch.zeros_like(mask), torch.ones_like(mask)]).float())
    assert masks.largest_component(maps.bool()).dtype == torch.bool
    tie = torch.tensor([[1, 0, 1]])[None, None]
    assert masks.largest_component(tie).tolist() == [[[[1, 0, 0]]]]


def test_errors() -> None:
    scores = torch.rand(1, 2, 4, 5)
    with pytest.raises(ValueError, match="Unknown background rule 'otsu'"):
        masks.assign(scores, rule="otsu")
    with pytest.raises(ValueError, match=r"background has shape \(1, 5, 4\): expected"):
        masks.assign(scores, torch.rand(1, 5, 4))


def drawn_masks(*rows: str) -> torch.Tensor:
    """[1, K, h, w] of drawn masks: a digit is its mask's number, anything else is outside."""
    count = max(int(char) for row in rows for char in row if char.isdigit()) + 1
    drawn = [[[float(char == str(k)) for char in row] for row in rows] for k in range(count)]
    return torch.tensor(drawn)[None]


def test_small_patches_are_removed() -> None:
    mask = drawn_masks("00..0", "00...", "...0.", "....0")  # patches of 4, 1 and 2 (diagonal) of 20 cells
    assert torch.equal(masks.remove_small(mask, 0.0), mask)
    assert torch.equal(masks.remove_small(mask, 0.05), mask)
    assert torch.equal(masks.remove_small(mask, 0.1), drawn_masks("00...", "00...", "...0.", "....0"))
    assert torch.equal(masks.remove_small(mask, 0.11), drawn_masks("00...", "00...", ".....", "....."))
    assert not masks.remove_small(mask, 1.0).any()
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="use a fraction from 0 to 1"):
            masks.remove_small(mask, share)


def test_holes_are_filled() -> None:
    ring = drawn_masks("0000.", "0..0.", "0000.")
    assert torch.equal(masks.fill_holes(ring), drawn_masks("0000.", "0000.", "0000."))
    gap = drawn_masks("00.0.", "0..0.", "0000.")
    assert torch.equal(masks.fill_holes(gap), gap)
    corner = drawn_masks("000", "0.0", "00.")  # a diagonal step is no way out
    assert torch.equal(masks.fill_holes(corner), drawn_masks("000", "000", "00."))


def test_holes_are_filled_without_overlaps_when_masks_are_apart() -> None:
    nested = drawn_masks("0000000", "0.....0", "0.111.0", "0.1.1.0", "0.111.0", "0.....0", "0000000")
    filled = drawn_masks("0000000", "0000000", "0011100", "0011100", "0011100", "0000000", "0000000")
    for order in ([0, 1], [1, 0]):
        result = masks.fill_holes(nested[:, order], disjoint=True)
        assert torch.equal(result, filled[:, order])
        assert result.sum(1).max() == 1
    assert masks.fill_holes(nested).sum(1).max() == 2


@pytest.mark.parametrize(
    "clean", [lambda m: masks.remove_small(m, 0.05), masks.fill_holes, lambda m: masks.fill_holes(m, True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tidying_is_per_sample_and_keeps_its_input(clean, dtype: torch.dtype, rng: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    found = (torch.rand(3, 2, 9, 13, generator=rng) > 0.4).to(dtype)
    kept = found.clone()
    result = clean(found)
    assert torch.equal(found, kept) and result.dtype == dtype and set(result.unique().tolist()) <= {0.0, 1.0}
    for sample in range(3):
        assert torch.equal(clean(found[[sample]]), result[[sample]])
    assert torch.equal(clean(found.mT), result.mT)


def enclosed(mask: Tensor) -> list[set[tuple[int, int]]]:
    """The holes of a mask [h, w]: its cells outside that cannot be left by steps along rows and columns."""
    height, width = mask.shape
    outside = {(y, x) for y in range(height) for x in range(width) if not mask[y, x]}
    holes = []
    while outside:
        patch, edge = set(), [outside.pop()]
        while edge:
            y, x = edge.pop()
            patch.add((y, x))
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & outside
            outside -= near
            edge += near
        if all(0 < y < height - 1 and 0 < x < width - 1 for y, x in patch):
            holes.append(patch)
    return holes


@pytest.mark.parametrize("seed", range(4))
def test_a_hole_belongs_to_the_innermost_mask_and_on_a_tie_to_the_first(seed: int) -> None:
    """Against the rule written out, with masks that overlap and masks that are there twice."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.rand(3, 3, 12, 17, generator=rng) < torch.tensor([0.55, 0.6, 0.65])[:, None, None]
    drawn = drawn[:, torch.randint(0, 3, (5,), generator=rng)]
    expected, decided = drawn.clone(), 0
    for sample, own in zip(drawn, expected, strict=True):
        taken = sample.any(0)
        holes = [(len(hole), number, hole) for number, mask in enumerate(sample) for hole in enclosed(mask)]
        for y, x in {cell for _, _, hole in holes for cell in hole if not taken[cell]}:
            around = [(size, number) for size, number, hole in holes if (y, x) in hole]
            own[min(around)[1], y, x] = True
            decided += len({number for size, number in around if size == min(around)[0]}) > 1
    assert decided, "no hole has two masks of one size around it, so the test shows nothing"
    assert torch.equal(masks.fill_holes(drawn, disjoint=True), expected)
    plain = drawn.clone()
    for number, mask in enumerate(drawn.flatten(0, 1)):
        for cell in {cell for hole in enclosed(mask) for cell in hole}:
            plain.flatten(0, 1)[number][cell] = True
    assert torch.equal(masks.fill_holes(drawn), plain)


@pytest.mark.parametrize(
    "clean",
    [
        masks.largest_component,
        lambda m: masks.remove_small(m, 0.05),
        masks.fill_holes,
        lambda m: masks.fill_holes(m, True),
    ],
)
def test_more_than_one_half_is_inside(clean, rng: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    soft = torch.tensor([0.0, 0.5, 0.51, 1.0])[torch.randint(0, 4, (2, 3, 9, 13), generator=rng)]
    assert torch.equal(clean(soft), clean((soft > 0.5).float()))
