"""Self-attention maps used row by row, against the same of whole maps in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core.capture.reduce import layer_scores
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.layer_scores import Agreement, KeptRows, MeanSink, PerplexitySink, Reference
from goca_core.capture.reduce.one_pass import self_pass
from goca_core.layers import layer_score, reference_affinity, resize_self_map

from .recordings import Gathering

B, H, D = 2, 3, 5
METHODS = ("dot-product similarity", "mse", "iou-like")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def some_maps(tokens: int, count: int) -> list[Tensor]:
    return [torch.softmax(draw(B, tokens, tokens, seed=seed), -1) for seed in range(count)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_the_folded_score_is_the_direct_one(method: str, seed: int) -> None:
    """Random grids, not square and of no integer ratio, finer and coarser than the reference."""
    sides = torch.randint(2, 12, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    grid, reference_grid = (sides[0], sides[1]), (sides[2], sides[3])
    affinity = reference_affinity(draw(B, 6, *reference_grid, seed=seed))
    layer = torch.softmax(draw(B, grid[0] * grid[1], grid[0] * grid[1], seed=seed), -1)
    found = Reference(affinity, reference_grid).score(layer, grid, method)
    expected = layer_score(affinity.double(), resize_self_map(layer.double(), grid, reference_grid), method)
    assert torch.allclose(found.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_in_half_precision_scores_nearly_the_same(method: str) -> None:
    grid, layer_grid = (12, 16), (6, 8)
    feature, layer = draw(B, 6, *grid), torch.softmax(draw(B, 48, 48), -1)
    half = reference_affinity(feature, dtype=torch.float16)
    assert half.dtype == torch.float16
    found = Reference(half, grid).score(layer, layer_grid, method)
    exact = layer_score(reference_affinity(feature.double()), resize_self_map(layer.double(), layer_grid, grid), method)
    assert torch.allclose(found.double(), exact, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(("grid", "target"), [((6, 8), (6, 8)), ((6, 8), (3, 4)), ((7, 5), (4, 3))])
def test_rows_that_are_taken_are_the_rows_of_the_map(
    grid: tuple[int, int], target: tuple[int, int], frames: int, elements: int
) -> None:
    count = frames * grid[0] * grid[1]
    call = AttentionCall(*(draw(B, H, count, D, seed=seed) for seed in range(3)), None, 0.6)
    every = slice(0, count)
    # Beside a target that is finer than the layer the map of the layer's own grid is needed whole.
    taken, whole = Gathering(grid, [target], frames), Gathering(grid, [target, (20, 20)], frames)
    for gathering in (taken, whole):
        self_pass(call, every, gathering.maps)
    assert torch.equal(taken.of(target)[0], whole.of(target)[0])
    assert taken.sinks[target].rows and bool(whole.sinks[target].rows) is (target != grid)


@pytest.mark.parametrize("targets", [[(12, 16)], [(3, 9)], [(6, 8), (12, 16)], [(9, 9), (6, 8)]])
def test_a_map_that_is_resized_later_is_not_taken(targets: list[tuple[int, int]], elements: int) -> None:
    """Finer than the layer, alone or beside the layer's own grid, or with rows that are needed twice."""
    gathering = Gathering((6, 8), targets)
    call = AttentionCall(*(draw(B, H, 48, D, seed=seed) for seed in range(3)), None, 0.6)
    self_pass(call, slice(0, 48), gathering.maps)
    for target in targets:
        assert gathering.of(target)[1] == (target if target[0] * target[1] < 48 else (6, 8))
        assert not gathering.sinks[target].rows


@pytest.mark.parametrize("frames", [1, 2])
def test_agreement_by_rows_is_that_of_the_whole(frames: int) -> None:
    affinity = reference_affinity(draw(B * frames, 6, 4, 5))
    layer = torch.softmax(draw(B * frames, 20, 20), -1)
    agreement = Agreement(affinity, frames, METHODS)
    for frame, whole in enumerate(layer.unflatten(0, (B, frames)).unbind(1)):
        for start in range(0, 20, 7):
            agreement.take(frame, slice(start, start + 7), whole[:, start : start + 7])
    for method, found in agreement.result().items():
        assert torch.allclose(found.double(), layer_score(affinity.double(), layer.double(), method), rtol=1e-5)


def test_the_mean_of_layers_by_rows() -> None:
    maps = some_maps(20, 3)
    maps[1][0, 3, 4] = torch.nan  # counts as nothing, as everywhere in the method
    mean = MeanSink((4, 5), 1)
    for layer in maps:
        for start in range(0, 20, 6):
            mean.take(0, slice(start, start + 6), layer[:, start : start + 6])
        mean.finish(None)
    expected = torch.stack(maps).double().nan_to_num(0.0).mean(0)
    assert torch.allclose(mean.result().double(), expected, atol=1e-7)


def by_perplexity(layers: list[torch.Tensor]) -> torch.Tensor:
    """The mean [B, N, N] in double precision, row by row."""
    total, weights = torch.zeros(layers[0].shape).double(), torch.zeros(len(layers[0])).double()
    for layer in layers:
        rows = layer.double() / layer.double().sum(-1, keepdim=True)
        weight = (-(rows * rows.log()).sum(-1)).mean(-1).exp() ** 2
        total, weights = total + weight[:, None, None] * rows, weights + weight
    return total / weights[:, None, None]


@pytest.mark.parametrize("step", [6, 20])
def test_the_mean_of_layers_by_perplexity(step: int) -> None:
    maps = [torch.softmax(scale * draw(B, 20, 20, seed=scale), -1) * torch.rand(B, 20, 1) for scale in (1, 2, 5)]
    mean = PerplexitySink((4, 5), 1)
    for layer in maps:
        for start in range(0, 20, step):
            mean.take(slice(None), slice(start, start + step), layer[:, None, start : start + step])
        mean.finish(None)
    assert torch.allclose(mean.result().double(), by_perplexity(maps), atol=1e-6)
    assert torch.allclose(mean.result().sum(-1), torch.ones(B, 20), atol=1e-5)
    # Several that come at once, and whole maps.
    at_once = PerplexitySink((4, 5), 1)
    at_once.of(2).take(slice(None), slice(0, 20), torch.cat(maps[:2])[:, None])
    at_once.finish(None)
    at_once.of(1).finish((maps[2], (4, 5)))
    assert torch.allclose(at_once.result(), mean.result(), atol=1e-6)


def test_perplexity_of_frames_and_of_maps_without_anything() -> None:
    maps = [torch.softmax(draw(B * 3, 20, 20, seed=seed), -1) for seed in (1, 2)]
    maps[1][0, 4] = 0
    mean = PerplexitySink((4, 5), 3)
    for layer in maps:
        for frame, part in enumerate(layer.unflatten(0, (B, 3)).unbind(1)):
            mean.take(slice(frame, frame + 1), slice(0, 20), part[:, None])
        mean.finish(None)
    assert torch.isfinite(mean.result()).all()
    assert torch.allclose(mean.result()[1:].double(), by_perplexity(maps)[1:], atol=1e-6)
    with pytest.raises(ValueError, match="No layer was finished"):
        PerplexitySink((4, 5), 1).result()


def test_layers_that_an_accelerator_weights_together(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.softmax(scale * draw(B, 20, 20, seed=scale), -1) for scale in (1, 2, 3, 4, 5)]
    monkeypatch.setattr(layer_scores, "CPUS", frozenset())
    for together in (1, 2 * maps[0].numel(), 1 << 24):
        monkeypatch.setattr(layer_scores, "_TOGETHER", together)
        mean = PerplexitySink((4, 5), 1)
        for layer in maps:
            mean.take(slice(None), slice(0, 20), layer[:, None])
            mean.finish(None)
        assert torch.allclose(mean.result().double(), by_perplexity(maps), atol=1e-6)


def test_nothing_taken_is_an_error() -> None:
    with pytest.raises(ValueError, match="No rows were taken"):
        KeptRows(1).result()


def test_a_kept_map_may_have_another_precision() -> None:
    kept, (layer,) = KeptRows(1, torch.float16), some_maps(20, 1)
    for rows in (slice(0, 11), slice(11, 20)):
        kept.take(0, rows, layer[:, rows])
    assert torch.equal(kept.result(), layer.half())
