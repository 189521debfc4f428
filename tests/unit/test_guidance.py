from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core import guidance

Case = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def case(rng: torch.Generator) -> Case:
    """cond, uncond, labels, foreground"""
    cond, uncond = torch.randn(2, 2, 4, 6, 9, generator=rng)
    cond[:, :, :, 5:] *= 3
    labels = torch.randint(0, 4, (2, 6, 9), generator=rng)
    fore = (torch.rand(2, 6, 9, generator=rng) > 0.5).float()
    return cond, uncond, labels, fore


def masks_of(labels: Tensor) -> Tensor:
    return torch.stack([labels == value for value in range(int(labels.max()) + 1)], 1).float()


def test_rate_map_against_the_formula(case: Case) -> None:
    cond, uncond, labels, fore = case
    actual = guidance.rate_map(cond, uncond, labels, fore, 7.5, smooth=False)
    for i in range(2):
        push = (cond[i] - uncond[i]).square().sum(0).sqrt()
        fore_push = push[fore[i] > 0].mean()
        for value in range(4):
            inside = labels[i] == value
            rate = min(max(float(fore_push / push[inside].mean()), 0.8), 3.0, 2.0)
            torch.testing.assert_close(actual[i][inside], torch.full((int(inside.sum()),), rate))


def test_rate_map_properties(case: Case) -> None:
    cond, uncond, labels, fore = case
    copies = [t.clone() for t in case]
    actual = guidance.rate_map(cond, uncond, labels, fore, 7.5)
    assert actual.shape == (2, 6, 9)
    assert all(torch.equal(c, t) for c, t in zip(copies, case, strict=True))
    torch.testing.assert_close(guidance.rate_map(cond, uncond, masks_of(labels), fore, 7.5), actual)
    for i in (0, 1):
        single = guidance.rate_map(*(t[i : i + 1] for t in case), 7.5)  # type: ignore[misc]
        torch.testing.assert_close(single[0], actual[i])
    turned = guidance.rate_map(*(t.mT for t in case), 7.5)  # type: ignore[misc]
    torch.testing.assert_close(turned.mT, actual)
    # a velocity or sample prediction differs by a factor
    for factor in (1e-4, 30.0):
        torch.testing.assert_close(guidance.rate_map(factor * cond, factor * uncond, labels, fore, 7.5), actual)
    half = guidance.rate_map(cond.half(), uncond.half(), labels, fore.half(), 7.5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, actual, rtol=0, atol=1e-3)


def test_masks_are_brought_to_the_size_of_the_prediction(case: Case) -> None:
    cond, uncond, labels, fore = case
    big = [t.repeat_interleave(2, -1).repeat_interleave(3, -2) for t in (cond, uncond, labels, fore)]
    coarse = guidance.rate_map(big[0], big[1], labels, fore, 7.5)
    torch.testing.assert_close(coarse, guidance.rate_map(big[0], big[1], big[2], big[3], 7.5))


def test_uniform_push_is_plain_guidance(case: Case) -> None:
    _, uncond, labels, fore = case
    cond = uncond + torch.tensor([0.3, -0.2, 0.1, 0.5])[:, None, None]
    rate = guidance.rate_map(cond, uncond, labels, fore, 15.0)
    torch.testing.assert_close(rate, torch.ones_like(rate), rtol=0, atol=1e-5)
    plain = uncond + 15.0 * (cond - uncond)
    torch.testing.assert_close(guidance.guided(cond, uncond, rate, 15.0), plain, rtol=0, atol=1e-3)


def test_ceiling_wins_over_the_floor(case: Case) -> None:
    rate = guidance.rate_map(*case, scale=20.0)
    torch.testing.assert_close(rate, torch.full_like(rate, 0.75))
    assert guidance.rate_map(*case, scale=18.0, smooth=False).min() >= 0.8
    assert torch.isfinite(guidance.rate_map(*case, scale=0.0)).all()


def test_nothing_to_go_by_is_plain_guidance(case: Case) -> None:
    cond, uncond, labels, fore = case
    fore[0] = 0
    rate = guidance.rate_map(cond, uncond, labels, fore, 7.5)
    assert torch.equal(rate[0], torch.ones(6, 9)) and not torch.allclose(rate[1], torch.ones(6, 9), atol=1e-2)
    assert torch.equal(guidance.rate_map(cond, cond, labels, fore, 7.5), torch.ones(2, 6, 9))
    uncovered = masks_of(labels)
    uncovered[1, :, 2, 3] = 0
    assert guidance.rate_map(cond, uncond, uncovered, fore, 7.5, smooth=False)[1, 2, 3] == 1
    for bad in (torch.nan, torch.inf):
        cond[1, 0, 0, 0] = bad
        assert torch.isfinite(guidance.rate_map(cond, uncond, labels, fore, 7.5)).all()


def test_regions() -> None:
    maps = torch.tensor([[0.5, 0.2, 0.9], [0.5, 0.7, 0.1], [0.1, 0.8, 0.3]]).reshape(1, 3, 1, 3)
    first = guidance.regions(maps)
    assert first.dtype == torch.float32
    assert first[0, :, 0].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert guidance.regions(maps, ties="all")[0, :, 0].tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert guidance.regions(maps, [1, 0])[0, :, 0].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert guidance.regions(torch.zeros(1, 3, 1, 2), [1, 2], ties="all")[0, 0].sum() == 0
    broken = torch.full((1, 3, 2, 2), torch.nan)
    assert torch.equal(guidance.regions(broken).sum(1), torch.ones(1, 2, 2))


def test_tied_regions_add_their_rates() -> None:
    cond = torch.ones(1, 1, 2, 2)
    both = torch.ones(1, 2, 2, 2)
    rate = guidance.rate_map(cond, torch.zeros_like(cond), both, torch.ones(1, 2, 2), 2.0)
    torch.testing.assert_close(rate, torch.full((1, 2, 2), 2.0))


def test_foreground() -> None:
    background = torch.zeros(2, 6, 8)
    background[0, :, :4] = 5.0
    actual = guidance.foreground(background.half())
    assert torch.equal(actual[0], (background[0] == 0).float())
    assert torch.equal(actual[1], torch.ones(6, 8))
    assert set(guidance.foreground(torch.full((1, 2, 2), torch.nan)).unique().tolist()) <= {0.0, 1.0}


def test_errors(case: Case) -> None:
    cond, uncond, labels, fore = case
    with pytest.raises(ValueError, match="differ: pass two predictions"):
        guidance.rate_map(cond, uncond[:, :3], labels, fore, 7.5)
    with pytest.raises(ValueError, match="expected labels"):
        guidance.rate_map(cond, uncond, labels[:1], fore, 7.5)
    with pytest.raises(ValueError, match="must be integers"):
        guidance.rate_map(cond, uncond, labels.float(), fore, 7.5)
    with pytest.raises(ValueError, match="label -1"):
        guidance.rate_map(cond, uncond, labels - 1, fore, 7.5)
    with pytest.raises(ValueError, match="foreground has 1 samples"):
        guidance.rate_map(cond, uncond, labels, fore[:1], 7.5)
    with pytest.raises(ValueError, match="do not fit"):
        guidance.guided(cond, uncond, fore[:, :3], 7.5)
    with pytest.raises(ValueError, match="candidates are"):
        guidance.regions(cond, [4])
    with pytest.raises(ValueError, match="candidates are"):
        guidance.regions(cond, [])
    with pytest.raises(ValueError, match="Unknown ties"):
        guidance.regions(cond, ties="last")  # type: ignore[arg-type]


def test_a_rate_of_one_is_exactly_one(rng: torch.Generator) -> None:
    cond, uncond = torch.randn(2, 2, 4, 6, 9, generator=rng)
    labels = torch.randint(0, 4, (2, 6, 9), generator=rng)
    rate = guidance.rate_map(cond, uncond, labels, torch.ones(2, 6, 9), 7.5, minimum=1.0, maximum=1.0)
    assert torch.equal(rate, torch.ones(2, 6, 9))
