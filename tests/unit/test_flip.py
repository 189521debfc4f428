"""A flipped recording."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.attention.merge import flip_recording, merge
from goca_core.attention.record import Affinity, Attention, Layer, Tokens

from .recordings import DEFAULTS, recording


def recording_of(image: Tensor, grids: tuple[tuple[int, int], ...] = ((6, 10), (3, 5))) -> Attention:
    """The recording of a network that treats each place alike, and so does not know left from right: attention between
    the colours [B, C, H, W] of places and of five tokens, on several grids."""
    tokens = torch.randn(5, image.shape[1], generator=torch.Generator().manual_seed(1)).to(image)

    def places(grid: tuple[int, int]) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)

    layers = tuple(
        Layer(
            f"input.{number}.0",
            *grid,
            {method: torch.softmax(2 * places(grid) @ tokens.T, -1) for method in ("average", DEFAULTS.head)},
            {DEFAULTS.layer: torch.full((image.shape[0],), number + 1.0)},
        )
        for number, grid in enumerate(grids)
    )
    colours = places(grids[1])
    spread = Affinity(*grids[1], torch.softmax(3 * colours @ colours.transpose(1, 2), -1))
    return Attention("unet", 6, 10, 8, layers, Tokens(tuple(range(5)), False, 5), DEFAULTS, spread, (0.35,))


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0)).to(dtype)


def assert_same(first: Attention, second: Attention, tolerance: float = 1e-6) -> None:
    for one, other in zip(first.layers, second.layers, strict=True):
        for method, value in one.maps.items():
            torch.testing.assert_close(value, other.maps[method], atol=tolerance, rtol=0)
        assert all(torch.equal(one.scores[method], other.scores[method]) for method in one.scores)
    assert (first.affinity is None) == (second.affinity is None)
    if first.affinity is not None and second.affinity is not None:
        torch.testing.assert_close(first.affinity.matrix, second.affinity.matrix, atol=tolerance, rtol=0)
    assert replace(first, layers=(), affinity=None) == replace(second, layers=(), affinity=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_flipped_recording_of_a_flipped_image_is_that_of_the_image(dtype: torch.dtype) -> None:
    shown = image(dtype)
    straight = recording_of(shown)
    seen = flip_recording(recording_of(shown.flip(-1)))
    assert_same(seen, straight, 2e-3 if dtype == torch.float16 else 1e-6)
    assert seen.layers[0].maps["average"].dtype == dtype
    # The image is not symmetric, or all this would show nothing.
    with pytest.raises(AssertionError):
        assert_same(recording_of(shown.flip(-1)), straight, 2e-2)


def test_it_goes_down_to_the_global_map() -> None:
    shown = image()
    assert torch.allclose(
        aggregate(flip_recording(recording_of(shown))).maps, aggregate(recording_of(shown)).maps.flip(-1), atol=1e-6
    )


def test_each_place_goes_to_the_opposite_one_of_its_row() -> None:
    record = recording(3)
    seen = flip_recording(record)
    for layer, other in zip(record.layers, seen.layers, strict=True):
        for method, value in layer.maps.items():
            for y in range(layer.height):
                for x in range(layer.width):
                    opposite = y * layer.width + layer.width - 1 - x
                    assert torch.equal(other.maps[method][:, opposite], value[:, y * layer.width + x])
    assert record.affinity is not None and seen.affinity is not None
    height, width = record.affinity.height, record.affinity.width
    whole = record.affinity.matrix.unflatten(2, (height, width)).unflatten(1, (height, width))
    assert torch.equal(seen.affinity.matrix, whole.flip(2, 4).flatten(3).flatten(1, 2))


def test_each_layer_of_propagation_is_flipped_like_their_mean() -> None:
    seen = flip_recording(recording(3, parts=True)).affinity
    assert seen is not None and len(seen.parts) == 2
    assert torch.allclose(torch.stack(list(seen.parts.values())).mean(0), seen.matrix, atol=1e-6)


def test_twice_is_not_at_all() -> None:
    for affinity in (True, False):
        record = recording(2, affinity=affinity)
        assert_same(flip_recording(flip_recording(record)), record, 0.0)


def test_the_recording_stays_as_it_was() -> None:
    record = recording()
    before = copy.deepcopy(record)
    flip_recording(record)
    assert_same(record, before, 0.0)


def test_the_mean_with_the_flipped_one_is_symmetric() -> None:
    record = recording(5)
    mean = merge([record, flip_recording(record)])
    assert_same(flip_recording(mean), mean)
