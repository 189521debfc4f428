"""What a call leaves of self-attention, whatever the levels of its layers, against the same of whole maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from goca_core.attention.record import Defaults, Tokens
from goca_core.capture.families.base import Block, Plan, Site
from goca_core.capture.options import RecordOptions
from goca_core.capture.reduce import spec as spec_module
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.cond_recorder import CondRecorder
from goca_core.capture.reduce.spec import ReductionSpec
from goca_core.layers import layer_score, reference_affinity, resize_self_map

B, H, D = 2, 2, 8
SIZE = (12, 10)
SCORED = ("dot-product similarity", "mse", "iou-like")
DEFAULTS = Defaults("average", SCORED[0], "sum-1 rescaling + per-token renorm+", 2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("half", [False, True], ids=["exact", "large grids in half precision"])
@pytest.mark.parametrize("full", [False, True], ids=["affinity bounded", "full affinity"])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("known", [0, 2, 4], ids=lambda number: f"reference before layer {number}")
@pytest.mark.parametrize("reference", [0, 1, 2])
@pytest.mark.parametrize("averaged", [(0, 1, 2, 3), (1, 2), (3,)])
def test_scores_and_affinity(
    averaged: tuple[int, ...],
    reference: int,
    known: int,
    frames: int,
    full: bool,
    half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way there is: layers finer and coarser than both grids, scored at once or held, averaged at once or resized."""
    monkeypatch.setattr(spec_module, "_HOLD_EXACT", 20 if half else 1024)
    site = Site(H, nn.Identity(), nn.Identity())
    blocks = tuple(Block(f"layer.{n}", site, site, level) for n, level in enumerate((0, 1, 2, 1)))
    plan = Plan(blocks, blocks[reference].name, tuple(blocks[n].name for n in averaged), DEFAULTS, 0.4)
    options = RecordOptions(("average",), SCORED, full_affinity=full, affinity_parts=True)
    spec = ReductionSpec(plan, options, SIZE, frames)
    grids = [plan.grid(block.level, *SIZE) for block in blocks]
    recorder = CondRecorder(spec, slice(0, B), Tokens((1,), True, 3))
    feature = draw(B, frames * grids[reference][0] * grids[reference][1], 6)
    layers = []
    for number, (block, grid) in enumerate(zip(blocks, grids, strict=True)):
        if number == known:
            recorder.take_feature(feature, grids[reference])
        count = grid[0] * grid[1]
        q, k = (draw(B, H, frames * count, D, seed=number + extra) for extra in (0, 10))
        recorder.take_text(
            block,
            AttentionCall(q, draw(B, H, 3, D), draw(B, H, 3, D), None, 0.4),
            q.transpose(1, 2).flatten(2),
            grid,
        )
        recorder.take_self(block, AttentionCall(q, k, k, None, 0.8), grid, slice(0, frames * count))
        whole = torch.softmax(q.double() @ k.double().mT * 0.8, -1).mean(1)
        own = [whole[:, part, part] for part in (slice(f * count, (f + 1) * count) for f in range(frames))]
        layers.append(torch.stack(own, 1).flatten(0, 1))
    if known == len(blocks):
        recorder.take_feature(feature, grids[reference])
    result = recorder.result()

    pictures = feature.double().unflatten(1, (frames, -1)).flatten(0, 1).mT.unflatten(-1, grids[reference])
    affinity = reference_affinity(pictures)
    for block, grid, layer in zip(blocks, grids, layers, strict=True):
        resized = resize_self_map(layer, grid, spec.reference_grid)
        for method in SCORED:
            found = result.layers[block.name].scores[method].double()
            assert torch.allclose(found, layer_score(affinity, resized, method), rtol=2e-3 if half else 1e-5)
    parts = {blocks[n].name: resize_self_map(layers[n], grids[n], spec.affinity_grid) for n in averaged}
    assert set(result.affinity_parts) == set(parts) and result.affinity_grid == spec.affinity_grid
    for name, expected in parts.items():
        assert torch.allclose(result.affinity_parts[name].double(), expected, atol=1e-6)
    assert result.affinity is not None
    assert torch.allclose(result.affinity.double(), torch.stack(list(parts.values())).mean(0), atol=1e-6)
