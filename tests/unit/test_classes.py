from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from goca_core import classes


def test_otsu_has_the_largest_variance_between_two_classes(rng: torch.Generator) -> None:
    values = torch.cat(
        (torch.randn(3, 60, generator=rng), 6 + torch.rand(3, 1, generator=rng) + torch.randn(3, 30, generator=rng)), 1
    )
    thresholds, variances = classes.otsu(values)
    for sample, threshold, variance in zip(values.double(), thresholds, variances, strict=True):

        def between(at: float, sample: Tensor = sample) -> float:
            low, high = sample[sample <= at], sample[sample > at]
            return len(low) * len(high) / len(sample) ** 2 * float(high.mean() - low.mean()) ** 2

        most = max(between(float(at)) for at in sample.sort().values[:-1])
        assert between(float(threshold)) == pytest.approx(most, rel=0.03)
        assert float(variance) == pytest.approx(most, rel=0.05)
    scaled, more = classes.otsu(values * 4 - 1)
    torch.testing.assert_close(scaled, thresholds * 4 - 1)
    torch.testing.assert_close(more, variances * 16)
    assert classes.otsu(values.half())[0].dtype == torch.float32
    with pytest.raises(ValueError, match="values has shape"):
        classes.otsu(values[0])


def test_two_classes_by_hand(rng: torch.Generator) -> None:
    scores, background = torch.rand(2, 3, 4, 5, generator=rng), torch.rand(2, 4, 5, generator=rng)
    actual = classes.two_classes(scores, background)
    for sample in (0, 1):
        margins = (scores - background[:, None])[sample].double().flatten(1)
        best, owner = margins.max(0)
        above = best > float(classes.otsu(best[None])[0])
        for k, margin in enumerate(margins):
            low, high = margin[~above].mean(), margin[above & (owner == k)].mean()
            expected = torch.zeros(20).double() if high.isnan() else (margin - low) / (high - low)
            torch.testing.assert_close(actual[sample, k].flatten().double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classes.two_classes(scores[1:], background[1:]), actual[1:])
    torch.testing.assert_close(classes.two_classes(scores.mT, background.mT).mT, actual)
    # Neither the scale of the scores nor what is added to all of them matters.
    other = classes.two_classes(scores / 8 + 0.5, background / 8 + 0.25)
    torch.testing.assert_close(other, actual, rtol=1e-3, atol=1e-3)
    half = classes.two_classes(scores.half(), background.half())
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_two_classes_of_a_phrase_that_is_nowhere_best() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.1, 0.1, 0.3, 0.2]]).reshape(1, 2, 1, 4)
    found = classes.two_classes(scores)
    assert torch.equal(found[0, 1], torch.zeros(1, 4)) and (found[0, 0, 0] > 0.5).tolist() == [False, False, True, True]
    assert torch.equal(classes.two_classes(torch.full((2, 3, 4, 5), 0.7)), torch.zeros(2, 3, 4, 5)), (
        "no object anywhere"
    )
    scores[0, 1] = torch.nan
    assert torch.isfinite(classes.two_classes(scores)).all()
    assert classes.two_classes(scores[..., :1]).shape == (1, 2, 1, 1)
    with pytest.raises(ValueError, match="background has shape"):
        classes.two_classes(scores, torch.zeros(1, 2, 4))


def test_frames_share_their_two_classes() -> None:
    """An object that is in the first frame only: alone, the second one would divide its noise."""
    scores = torch.tensor([[0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.2, 0.1]]).reshape(2, 1, 1, 4)
    assert (classes.two_classes(scores, frames=2) > 0.5)[1].sum() == 0
    assert (classes.two_classes(scores) > 0.5)[1].sum() == 1
    twice = torch.cat((scores, scores + 3))
    torch.testing.assert_close(classes.two_classes(twice, frames=2)[2:], classes.two_classes(scores, frames=2))


def test_the_clearest_margins_are_chosen(rng: torch.Generator) -> None:
    clear = (torch.rand(4, 2, 3, 5, generator=rng) > 0.6).float()
    vague = 0.3 * torch.rand(4, 2, 3, 5, generator=rng)
    first = torch.cat((clear[:2], vague[2:]))
    second = torch.cat((vague[:2], clear[2:]))
    assert torch.equal(classes.clearest([first, second], [1, 1]), clear), "sample by sample"
    assert torch.equal(classes.clearest([vague, clear], [1, 2]), clear)
    assert torch.equal(classes.clearest([vague, clear], [1, 100]), vague), "a wider range is no advantage"
    assert torch.equal(classes.clearest([clear, clear.flip(-1)], [1, 1]), clear), "the first of equals"
    whole = classes.clearest([first, second], [1, 1], frames=4)
    assert torch.equal(whole, first) or torch.equal(whole, second)
    with pytest.raises(ValueError, match="Got margins of shapes"):
        classes.clearest([clear, clear[:1]], [1, 1])
    with pytest.raises(ValueError, match="Got margins of shapes"):
        classes.clearest([], [])


def test_a_phrase_is_absent_if_both_of_its_peaks_are_low(rng: torch.Generator) -> None:
    attention, shares = torch.rand(2, 4, 3, 5, generator=rng), torch.rand(2, 4, 3, 5, generator=rng)
    peaks = torch.tensor([[1.0, 0.51, 0.49, 0.49], [0.1, 0.2, 0.3, 0.4]])
    attention *= peaks[..., None, None] / attention.amax((2, 3), keepdim=True)
    of_content = torch.tensor([[0.2, 0.1, 0.6, 0.2], [0.9, 0.9, 0.1, 0.1]])
    shares *= of_content[..., None, None] / shares.amax((2, 3), keepdim=True)
    expected = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert torch.equal(classes.find_present(attention, shares), expected)
    assert torch.equal(classes.find_present(attention * 40, shares / 7), expected), "scale does not matter"
    assert torch.equal(classes.find_present(attention[:, 3:], shares[:, 3:]), torch.ones(2, 1, dtype=torch.bool))
    found = classes.find_present(attention, shares, frames=2)
    assert torch.equal(found, torch.tensor([[True, True, True, False]]).expand(2, -1)), "frames have one answer"
    assert classes.find_present(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)).all(), "nothing to compare"
    with pytest.raises(ValueError, match="pass both for the same phrases"):
        classes.find_present(attention, shares[:1])


@pytest.mark.parametrize("frames", [1, 2])
def test_another_word_outdoes_a_phrase_where_it_is_higher_and_further_above_its_mean(
    rng: torch.Generator, frames: int
) -> None:
    scores, rivals = torch.rand(2, 2, 3, 5, generator=rng), torch.rand(2, 3, 3, 5, generator=rng)
    means = [each.mean((0, 2, 3) if frames == 2 else (2, 3)).expand(2, -1) for each in (scores, rivals)]
    expected = torch.zeros(2, 2, 3, 5, dtype=torch.bool)
    for b, k, r, y, x in itertools.product(range(2), range(2), range(3), range(3), range(5)):
        own, other = scores[b, k, y, x], rivals[b, r, y, x]
        expected[b, k, y, x] |= bool(other > own and other - means[1][b, r] > own - means[0][b, k])
    assert torch.equal(classes.outdone(scores, rivals, frames), expected) and 0 < expected.float().mean() < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_outdoes_no_phrase(rng: torch.Generator, dtype: torch.dtype) -> None:
    scores = torch.rand(2, 2, 3, 5, generator=rng).to(dtype)
    everywhere = torch.full((2, 1, 3, 5), 0.99, dtype=dtype)
    high = scores >= scores.float().mean((2, 3), keepdim=True) + 0.02
    assert not classes.outdone(scores, everywhere)[high].any(), "a word that means no place"
    filling = torch.full((2, 1, 3, 5), 0.9, dtype=dtype)
    assert not classes.outdone(filling, scores * 0.8).any(), "a thing that fills the image"
    assert (
        not classes.outdone(scores, scores[:, :0]).any()
        and not classes.outdone(scores, scores.nan_to_num() * torch.nan).any()
    )
    with pytest.raises(ValueError, match="pass both for the same pixels"):
        classes.outdone(scores, everywhere[:, :, :2])


@pytest.mark.parametrize("frames", [1, 2])
def test_absent_phrases_take_no_part(rng: torch.Generator, frames: int) -> None:
    scores, background = torch.rand(2, 3, 4, 5, generator=rng), torch.rand(2, 4, 5, generator=rng)
    background /= 2
    present = torch.tensor([True, False, True]).expand(2, -1)
    two = [0, 2]
    found = classes.two_classes(scores, background, frames, present)
    torch.testing.assert_close(found[:, two], classes.two_classes(scores[:, two], background, frames))
    assert not found[:, 1].any()
    other = scores / 2 + background[:, None]
    chosen = classes.clearest([scores, other], [1, 1], frames, present)
    torch.testing.assert_close(chosen[:, two], classes.clearest([scores[:, two], other[:, two]], [1, 1], frames))
