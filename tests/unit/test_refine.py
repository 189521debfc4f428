from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from goca_core import refine
from goca_core.layers import resize_self_map
from goca_core.tensors import stretch

Attention = Callable[..., Tensor]


def test_mean_affinity(attention: Attention) -> None:
    maps = [attention(2, 6, 6), attention(2, 24, 24).half()]
    grids = [(2, 3), (4, 6)]
    copies = [m.clone() for m in maps]
    actual = refine.mean_affinity(maps, grids, (4, 6))
    expected = (resize_self_map(maps[0], (2, 3), (4, 6)) + maps[1].float()) / 2
    torch.testing.assert_close(actual, expected)
    assert all(torch.equal(m, c) for m, c in zip(maps, copies, strict=True))
    with pytest.raises(ValueError, match="0 self-attention maps"):
        refine.mean_affinity([], [], (4, 6))


def test_propagate(attention: Attention, rng: torch.Generator) -> None:
    scores = torch.rand(2, 3, 3, 5, generator=rng)
    affinity = attention(2, 15, 15)
    actual = refine.propagate(scores, affinity, 2)
    vector = scores[1, 2].flatten().double()
    vector = affinity[1].double() @ (affinity[1].double() @ vector)
    expected = (vector - vector.min()) / (vector.max() - vector.min())
    torch.testing.assert_close(actual[1, 2].flatten().double(), expected, rtol=0, atol=1e-4)
    singles = torch.cat([refine.propagate(scores[i : i + 1], affinity[i : i + 1], 2) for i in (0, 1)])
    torch.testing.assert_close(singles, actual, rtol=0, atol=1e-5)

    order = torch.arange(15).reshape(3, 5).T.flatten()
    turned = refine.propagate(scores.mT, affinity[:, order][:, :, order], 2)
    torch.testing.assert_close(turned.mT, actual, rtol=0, atol=1e-5)
    half = refine.propagate(scores.half(), affinity.bfloat16(), 2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, refine.propagate(scores.half().float(), affinity.bfloat16().float(), 2))


def test_propagate_order_zero_and_empty_maps(attention: Attention) -> None:
    scores = torch.rand(1, 2, 4, 4)
    scores[:, 1] = 0
    affinity = attention(1, 16, 16)
    same = refine.propagate(scores, affinity, 0)
    assert torch.equal(same, scores) and same.data_ptr() != scores.data_ptr()
    actual = refine.propagate(scores, affinity, 3)
    assert not actual[:, 1].any() and actual[:, 0].max() == 1


def test_propagate_with_a_robust_range(attention: Attention, rng: torch.Generator) -> None:
    scores = torch.rand(2, 2, 10, 15, generator=rng)
    scores[1, 0, 0, 0] = 50
    affinity = (8 * torch.eye(150) + torch.randn(150, 150, generator=rng)).softmax(-1).expand(2, -1, -1)
    full, robust = refine.propagate(scores, affinity, 1), refine.propagate(scores, affinity, 1, "robust")
    torch.testing.assert_close(robust, stretch(full, "robust"), rtol=0, atol=1e-6)
    assert full[1, 0].median() < 0.05 and robust[1, 0].median() > 0.2
    with pytest.raises(ValueError, match="Unknown range 'none'"):
        refine.propagate(scores, affinity, 1, "none")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1e-20, 1e3])
def test_propagate_many_steps_of_any_row_sum(factor: float, rng: torch.Generator) -> None:
    scores = torch.rand(1, 1, 4, 4, generator=rng)
    local = torch.eye(16) + 0.01 * torch.rand(16, 16, generator=rng)
    expected = refine.propagate(scores, local[None], 15)
    torch.testing.assert_close(refine.propagate(scores, factor * local[None], 15), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite_output(attention: Attention, bad: float) -> None:
    scores, affinity = torch.rand(1, 2, 4, 4), attention(1, 16, 16)
    scores[0, 0, 0, 0] = bad
    affinity[0, 3] = bad
    assert torch.isfinite(refine.propagate(scores, affinity, 4)).all()
    assert torch.isfinite(refine.mean_affinity([affinity], [(4, 4)], (3, 5))).all()
    assert torch.isfinite(refine.proposal_merge(scores, affinity)).all()
    assert torch.isfinite(refine.prototype(scores, torch.full((1, 3, 2, 2), bad))).all()


def test_proposal_merge_recovers_two_halves() -> None:
    """Affinity in two blocks, noisy scores: the masks are the blocks, whole."""
    side = torch.arange(8).repeat(8, 1) >= 4
    same = (side.flatten()[:, None] == side.flatten()).float() / 32
    scores = torch.stack([side.float(), 1 - side.float()])[None] * 0.9
    scores[:, :, 0] = 0.4
    actual = refine.proposal_merge(scores, same[None])
    assert torch.equal(actual[0], torch.stack([side, ~side]).float())
    assert not refine.proposal_merge(scores * 0.5, same[None]).any(), "a mean of one half or less is no object"
    singles = refine.proposal_merge(torch.cat([scores, scores.flip(1)]), same.expand(2, -1, -1))
    assert torch.equal(singles, torch.cat([actual, actual.flip(1)]))


def test_proposals_merge_along_a_chain() -> None:
    """A smooth affinity: neighbouring proposals are alike, those at opposite ends are not. The rounds join them all."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    affinity = (-torch.cdist(places, places).square() / 2 / 12**2).softmax(-1)[None]
    scores = 0.9 * torch.stack([x / 11, 1 - x / 11])[None]
    apart = refine.proposal_merge(scores, affinity, rounds=0)
    assert torch.equal(apart[0], torch.stack([x > 5, x <= 5]).float())
    assert not refine.proposal_merge(scores, affinity).any(), "one segment, on which no object scores above one half"


def test_prototype_follows_the_feature() -> None:
    left = torch.zeros(6, 8, dtype=torch.bool)
    left[:, :4] = True
    feature = torch.stack([left.float(), 1 - left.float()])[None]
    scores = torch.zeros(1, 2, 6, 8)
    scores[0, 0, 2, 1] = scores[0, 1, 3, 6] = 1
    assert torch.equal(refine.prototype(scores, feature)[0], torch.stack([left, ~left]).float())


def test_errors() -> None:
    scores = torch.rand(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"scores are 4 x 5: expected \[1, 20, 20\]"):
        refine.propagate(scores, torch.rand(1, 16, 16), 2)
    with pytest.raises(ValueError, match="order is -1"):
        refine.propagate(scores, torch.rand(1, 20, 20), -1)
    with pytest.raises(ValueError, match="stride is 0"):
        refine.proposal_merge(scores, torch.rand(1, 20, 20), stride=0)
    with pytest.raises(ValueError, match="same batch"):
        refine.prototype(scores, torch.rand(2, 3, 4, 5))
