from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from goca_core import layers
from goca_core.tensors import Grid, nearest_index

Attention = Callable[..., Tensor]
REFERENCE: Grid = (4, 6)
GRIDS: list[Grid] = [(2, 3), (8, 12), (4, 6), (3, 5)]


def area(grid: Grid) -> int:
    return grid[0] * grid[1]


def transpose_tokens(tensor: Tensor, grid: Grid, axes: tuple[int, ...]) -> Tensor:
    """Reorder raster axes of `grid` to the raster of the transposed image."""
    order = torch.arange(area(grid)).reshape(grid).T.flatten()
    for axis in axes:
        tensor = tensor.index_select(axis, order)
    return tensor


@pytest.fixture
def self_maps(attention: Attention) -> list[Tensor]:
    return [attention(2, area(grid), area(grid)) for grid in GRIDS]


@pytest.fixture
def affinity(rng: torch.Generator) -> Tensor:
    return layers.reference_affinity(torch.randn(2, 5, *REFERENCE, generator=rng))


def test_reference_affinity(rng: torch.Generator) -> None:
    feature = torch.randn(2, 5, 3, 4, generator=rng)
    actual = layers.reference_affinity(feature)
    pixels = feature.flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, (pixels @ pixels.transpose(1, 2) / 5**0.5).softmax(-1))
    torch.testing.assert_close(actual.sum(-1), torch.ones(2, 12))
    torch.testing.assert_close(layers.reference_affinity(feature[:, [4, 2, 0, 1, 3]]), actual)
    channel0 = layers.reference_affinity(feature, reference_channel0=True)
    torch.testing.assert_close(channel0, (pixels[..., :1] @ pixels[..., :1].mT).softmax(-1))
    assert not torch.allclose(channel0, actual, atol=1e-3)
    half = layers.reference_affinity((60000 * feature).half())
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = feature.clone()
        broken[0, :, 0, 0] = bad
        assert torch.isfinite(layers.reference_affinity(broken)).all()
        assert torch.equal(layers.reference_affinity(broken)[1], actual[1]) or torch.allclose(
            layers.reference_affinity(broken)[1], actual[1]
        )


def test_reference_affinity_in_blocks_and_other_precisions(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = torch.randn(2, 3, 5, 7, generator=rng)
    whole = layers.reference_affinity(feature)
    assert layers.reference_affinity(feature, dtype=torch.float16).dtype == torch.float16
    torch.testing.assert_close(layers.reference_affinity(feature, dtype=torch.float16), whole.half())
    assert layers.reference_affinity(feature.double()).dtype == torch.float64
    half = layers.reference_affinity(feature.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, layers.reference_affinity(feature.half().float()))
    # A number that is none counts as zero, and the others of its pixel count as they are.
    broken, mended = feature.clone(), feature.clone()
    broken[0, 1, 2, 3], mended[0, 1, 2, 3] = torch.nan, 0
    torch.testing.assert_close(layers.reference_affinity(broken), layers.reference_affinity(mended))
    monkeypatch.setattr(layers, "_ROWS_AT_ONCE", 4)
    torch.testing.assert_close(layers.reference_affinity(feature), whole)


@pytest.mark.parametrize("grid", GRIDS)
def test_resize_self_map(attention: Attention, grid: Grid) -> None:
    self_map = attention(2, area(grid), area(grid))
    size = REFERENCE
    full = layers.resize_self_map(self_map, grid, size)
    assert full.shape == (2, area(size), area(size))

    # the same from the rows that a recorder keeps
    subset = layers.resize_keys(self_map[:, nearest_index(grid, size)], grid, size)
    torch.testing.assert_close(subset, full)

    # queries: the source row of each pixel, one by one
    keys = torch.nn.functional.interpolate(self_map.unflatten(-1, grid), size=size, mode="bilinear").flatten(2)
    for y in range(size[0]):
        for x in range(size[1]):
            source = (y * grid[0] // size[0]) * grid[1] + x * grid[1] // size[1]
            torch.testing.assert_close(full[:, y * size[1] + x], keys[:, source])

    # the transposed image gives the transposed result
    turned = layers.resize_self_map(transpose_tokens(self_map, grid, (1, 2)), grid[::-1], size[::-1])
    torch.testing.assert_close(turned, transpose_tokens(full, size, (1, 2)))


def test_mass_preserving() -> None:
    rows = torch.full((1, 3, 6), 1 / 6)
    torch.testing.assert_close(layers.resize_keys(rows, (2, 3), (4, 6)).sum(-1), torch.full((1, 3), 4.0))
    kept = layers.resize_keys(rows, (2, 3), (4, 6), mass_preserving=True)
    torch.testing.assert_close(kept.sum(-1), torch.ones(1, 3))

    for size in ((4, 6), (1, 2), (5, 3)):
        whole = torch.full((1, 6, 6), 1 / 6)
        kept = layers.resize_self_map(whole, (2, 3), size, mass_preserving=True)
        torch.testing.assert_close(kept.sum(-1), torch.ones(1, area(size)))
        changed = layers.resize_self_map(whole, (2, 3), size)
        torch.testing.assert_close(changed.sum(-1), torch.full((1, area(size)), area(size) / 6))

    uniform = [torch.full((1, area(g), area(g)), 1 / area(g)) for g in GRIDS]
    reference = torch.full((1, area(REFERENCE), area(REFERENCE)), 1 / area(REFERENCE))
    plain, fair = (
        layers.layer_scores(reference, REFERENCE, uniform, GRIDS, "dot-product similarity", mass_preserving=keep)[0]
        for keep in (False, True)
    )
    torch.testing.assert_close(fair, torch.full((4,), 0.25))
    torch.testing.assert_close(plain, torch.tensor([1 / area(g) for g in GRIDS]) / sum(1 / area(g) for g in GRIDS))


@pytest.mark.parametrize("method", layers.LAYER_METHODS)
def test_score_in_blocks(affinity: Tensor, self_maps: list[Tensor], method: str) -> None:
    resized = layers.resize_self_map(self_maps[0], GRIDS[0], REFERENCE)
    whole = layers.layer_score(affinity, resized, method)
    assert whole.shape == (2,)
    score = layers.LayerScore(method)
    for start in range(0, area(REFERENCE), 7):
        score.add(affinity[:, start : start + 7], resized[:, start : start + 7])
    torch.testing.assert_close(score.result(), whole)


@pytest.mark.parametrize("method", layers.LAYER_METHODS)
def test_layer_scores(affinity: Tensor, self_maps: list[Tensor], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*chosen: int, sample: slice = slice(None)) -> Tensor:
        maps = [self_maps[i][sample] for i in chosen]
        return layers.layer_scores(affinity[sample], REFERENCE, maps, [GRIDS[i] for i in chosen], method)

    actual = run(0, 1, 2, 3)
    torch.testing.assert_close(actual.sum(-1), torch.ones(2))
    raw = torch.stack(
        [
            layers.layer_score(affinity, layers.resize_self_map(m, g, REFERENCE), method)
            for m, g in zip(self_maps, GRIDS, strict=True)
        ],
        -1,
    )
    torch.testing.assert_close(actual, raw / raw.sum(-1, keepdim=True))
    torch.testing.assert_close(torch.cat([run(0, 1, 2, 3, sample=slice(i, i + 1)) for i in (0, 1)]), actual)
    torch.testing.assert_close(run(3, 1, 0, 2), actual[:, [3, 1, 0, 2]])
    twice = run(0, 1, 1)
    torch.testing.assert_close(twice[:, 1], twice[:, 2])
    once = run(0, 1)
    torch.testing.assert_close(twice[:, 0] / twice[:, 1], once[:, 0] / once[:, 1])
    monkeypatch.setattr(layers, "_ROWS_AT_ONCE", 5)
    torch.testing.assert_close(run(0, 1, 2, 3), actual)


def test_normalise_scores() -> None:
    scores = torch.tensor(
        [[1.0, 3.0, 0.0], [0.0, 0.0, 0.0], [torch.inf, 2.0, torch.inf], [torch.nan, -1.0, 2.0], [3e38, 3e38, 0.0]]
    )
    expected = torch.tensor([[0.25, 0.75, 0], [1 / 3] * 3, [0.5, 0, 0.5], [0, 0, 1], [0.5, 0.5, 0]])
    torch.testing.assert_close(layers.normalise_scores(scores), expected)


def test_scores_beyond_all_numbers() -> None:
    """An infinite one outweighs the largest finite one, minus infinity counts as nothing, and each sample is for itself."""
    scores = torch.tensor([[torch.inf, 1e38, 3e38], [-torch.inf, 0.5, 0.25], [6e-38, 2e-38, 0.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2 / 3, 1 / 3], [0.75, 0.25, 0.0]])
    torch.testing.assert_close(layers.normalise_scores(scores), expected)
    half = torch.tensor([[0.1, 0.7], [0.3, 0.3]]).half()
    found = layers.normalise_scores(half)
    assert found.dtype == torch.float32 and layers.normalise_scores(half.double()).dtype == torch.float64
    torch.testing.assert_close(found, layers.normalise_scores(half.float()))


def test_exact_match_takes_all_the_weight(affinity: Tensor, self_maps: list[Tensor]) -> None:
    weights = layers.layer_scores(affinity, REFERENCE, [self_maps[2], affinity], [REFERENCE, REFERENCE], "mse")
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_aggregate_layers(attention: Attention, rng: torch.Generator) -> None:
    maps = [attention(2, area(g), 5) for g in GRIDS]
    weights = torch.rand(2, 4, generator=rng)
    copies = [m.clone() for m in maps]
    size = (8, 12)
    actual = layers.aggregate_layers(maps, GRIDS, weights, size)
    assert actual.shape == (2, 5, *size)
    torch.testing.assert_close(actual.sum(1), torch.ones(2, *size))
    assert all(torch.equal(m, c) for m, c in zip(maps, copies, strict=True))

    singles = [layers.aggregate_layers([m[i : i + 1] for m in maps], GRIDS, weights[i : i + 1], size) for i in (0, 1)]
    torch.testing.assert_close(torch.cat(singles), actual)
    order = [2, 0, 3, 1]
    shuffled = layers.aggregate_layers([maps[i] for i in order], [GRIDS[i] for i in order], weights[:, order], size)
    torch.testing.assert_close(shuffled, actual)
    turned = layers.aggregate_layers(
        [transpose_tokens(m, g, (1,)) for m, g in zip(maps, GRIDS, strict=True)],
        [g[::-1] for g in GRIDS],
        weights,
        size[::-1],
    )
    torch.testing.assert_close(turned, actual.mT)
    half = layers.aggregate_layers([m.half() for m in maps], GRIDS, weights, size)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, actual, rtol=0, atol=1e-3)


def test_negative_entries_are_clamped_after_the_sum() -> None:
    maps = [torch.tensor([[[-1.0, 2.0]]]), torch.tensor([[[3.0, 0.0]]])]
    actual = layers.aggregate_layers(maps, [(1, 1)] * 2, torch.tensor([[0.5, 0.5]]), (1, 1))
    torch.testing.assert_close(actual.flatten(), torch.tensor([0.5, 0.5]))
    actual = layers.aggregate_layers(maps, [(1, 1)] * 2, torch.tensor([[0.9, 0.1]]), (1, 1))
    torch.testing.assert_close(actual.flatten(), torch.tensor([0.0, 1.0]))


def test_pixel_with_everything_clamped() -> None:
    first = torch.tensor([[[-4.0, -4.0], [1.0, 3.0]]])
    second = torch.tensor([[[6.0, 10.0], [1.0, 1.0]]])
    weights = torch.tensor([[1.0, 0.0]])
    actual = layers.aggregate_layers([first, second], [(1, 2)] * 2, weights, (1, 2))
    # pixel 0: plain average (1, 3); pixel 1: the weighted sum
    torch.testing.assert_close(actual[0, :, 0], torch.tensor([[0.25, 0.25], [0.75, 0.75]]))
    nothing = layers.aggregate_layers([-first.abs()], [(1, 2)], torch.ones(1, 1), (1, 2))
    torch.testing.assert_close(nothing, torch.full((1, 2, 1, 2), 0.5))
    bad = layers.aggregate_layers([torch.full((1, 2, 2), torch.nan)], [(1, 2)], torch.ones(1, 1), (1, 2))
    torch.testing.assert_close(bad, torch.full((1, 2, 1, 2), 0.5))


def test_pixels_with_everything_clamped_are_told_apart() -> None:
    """In two samples of three tokens: one pixel takes the weighted sum, one the plain mean, and one has neither."""
    first = torch.tensor([[0.3, 0.1, 0.6], [-4.0, -4.0, -4.0], [-1.0, -1.0, -1.0]])
    second = torch.tensor([[0.1, 0.1, 0.1], [4.1, 4.3, 3.0], [0.5, 0.5, 0.5]])
    maps = [torch.stack([first, first.flip(0)]), torch.stack([second, second.flip(0)])]
    actual = layers.aggregate_layers(maps, [(1, 3)] * 2, torch.tensor([[1.0, 0.0]] * 2), (1, 3))
    expected = torch.tensor([[0.3, 0.1, 0.6], [0.25, 0.75, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(actual[0, :, 0].T, expected)
    torch.testing.assert_close(actual[1, :, 0].T, expected.flip(0))


def test_layers_of_one_grid_may_be_mixed_at_once(attention: Attention, rng: torch.Generator) -> None:
    """As an accelerator does it, for several weights."""
    grids: list[Grid] = [*GRIDS, (8, 12), (2, 3)]
    maps = [attention(2, area(g), 5) for g in grids]
    weights = torch.rand(2, 3, len(maps), generator=rng)
    actual = layers._mix_by_grid(maps, grids, weights, (8, 12))
    expected = torch.stack([layers._mix(maps, grids, one, (8, 12)) for one in weights.unbind(1)], 1)
    torch.testing.assert_close(actual, expected)

    maps[1][1, 7, 2] = torch.nan
    counted = layers._mix_by_grid(maps, grids, weights, (8, 12))
    torch.testing.assert_close(counted[:, 0], layers._mix(maps, grids, weights[:, 0], (8, 12)))
    passed = layers._mix_by_grid(maps, grids, weights, (8, 12), pass_on=True)
    assert passed[0].isfinite().all() and not passed[1].isfinite().all()


def test_errors(affinity: Tensor, self_maps: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="Unknown layer method 'cosine'"):
        layers.layer_scores(affinity, REFERENCE, self_maps, GRIDS, "cosine")
    with pytest.raises(ValueError, match="affinity has 24 image tokens but its grid is 5 x 5 = 25"):
        layers.layer_scores(affinity, (5, 5), self_maps, GRIDS, "mse")
    with pytest.raises(ValueError, match="4 layers and 3 grids"):
        layers.layer_scores(affinity, REFERENCE, self_maps, GRIDS[:3], "mse")
    with pytest.raises(ValueError, match="0 layers"):
        layers.layer_scores(affinity, REFERENCE, [], [], "mse")
    with pytest.raises(ValueError, match="differ: resize the layer"):
        layers.layer_score(affinity, self_maps[0], "mse")
    with pytest.raises(ValueError, match=r"^No rows were added: .*\.$"):
        layers.LayerScore("mse").result()
    with pytest.raises(ValueError, match=r"^Unknown layer method 'cosine'"):
        layers.LayerScore("cosine")
    maps = [torch.ones(2, 6, 4), torch.ones(2, 6, 3)]
    with pytest.raises(ValueError, match="map 1 has shape"):
        layers.aggregate_layers(maps, [(2, 3)] * 2, torch.ones(2, 2), (4, 4))
    with pytest.raises(ValueError, match=r"expected \[B, L\] = \[2, 1\]"):
        layers.aggregate_layers(maps[:1], [(2, 3)], torch.ones(1, 1), (4, 4))
    with pytest.raises(ValueError, match=r"^scores has no layers: .*\.$"):
        layers.normalise_scores(torch.ones(2, 0))
