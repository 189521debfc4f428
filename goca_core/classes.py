"""Where the background begins, and which phrases are absent, found in the scores themselves; not part of the paper.

Thresholds that are right for one model are wrong for the next, because the scale of scores differs. Nothing here depends on it.
docs/without-labels.md has the reasons and the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .masks import background_level
from .tensors import check_ndim, finite, stack_frames, unstack_frames, working_dtype

_BINS = 64
_LEAST_CONTRAST = 1e-3  # between a phrase and the background, in scores from 0 to 1; less would only amplify noise
_ABSENT = 0.5  # of the strongest phrase


def otsu(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute where values fall into two classes best: the threshold with the largest variance between the two.

    Source: Otsu, A threshold selection method from gray-level histograms, 1979; from a histogram of 64 bins between the
    smallest and the largest value. values: [B, N], finite. Returns the threshold and the variance between the classes of
    values above and not above it, [B] each. If all values are equal, the threshold is that value and the variance 0.

    >>> threshold, variance = otsu(torch.tensor([[0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    >>> 0 < threshold[0] < 1, round(float(variance[0]), 2), float(threshold[1]), float(variance[1])
    (tensor(True), 0.24, 3.0, 0.0)
    """
    check_ndim("values", values, "B N")
    values = values.to(working_dtype(values))
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    span = high - low
    varies = span > 0
    places = ((values - low) / torch.where(varies, span, 1.0) * _BINS).long().clamp_(0, _BINS - 1)
    counts = torch.zeros(len(values), _BINS, dtype=values.dtype, device=values.device)
    counts.scatter_add_(1, places, torch.ones_like(values))  # whole numbers, so the order of the sum does not matter
    share = counts / values.shape[1]
    centres = (torch.arange(_BINS, dtype=values.dtype, device=values.device) + 0.5) / _BINS
    below, mass = share.cumsum(-1)[:, :-1], (share * centres).cumsum(-1)
    both = below * (1 - below)
    between = (mass[:, -1:] * below - mass[:, :-1]).square() / torch.where(both > 0, both, 1.0)
    most, best = between.max(-1, keepdim=True)
    threshold = torch.where(varies, low + centres[best] * span, low)
    return threshold[:, 0], torch.where(varies, most * span.square(), 0.0)[:, 0]


def two_classes(
    scores: Tensor, background: Tensor | None = None, frames: int = 1, present: Tensor | None = None
) -> Tensor:
    """Measure scores between two levels: 0 is their mean over the background, 1 their mean over the phrase (not in the paper).

    A pixel then belongs to the phrase if its score is above one half, half-way between the levels. The levels come from a
    first division of the pixels: margins are the scores minus the background, the best margins fall into two classes by
    `otsu`, those above the threshold go to their best phrase, and the others are the background. Nothing depends on the scale of
    the scores, which differs from model to model.
    scores: [B, K, h, w]. background: [B, h, w], None for a map of zeros. frames: this many consecutive samples are the
    frames of one video, which share their levels. present: bool [B, K], False for phrases that take no part (`find_present`).
    Returns [B, K, h, w]. A phrase that takes no part, or is best nowhere above the threshold, is zero. NaN counts as 0.
    Raises ValueError for shapes that do not fit.

    >>> scores = torch.tensor([[[[0.1, 0.1, 0.3, 0.3]]]])  # one object, 1 x 4 pixels
    >>> [round(score, 2) for score in two_classes(scores).flatten().tolist()]
    [0.0, 0.0, 1.0, 1.0]
    """
    level = background_level(scores, background, "exact", 0.0)
    margins = stack_frames(finite(scores, level.dtype) - level[:, None], frames)
    size = margins.shape[2:]
    margins = margins.flatten(2)
    best, owner = _of_present(margins, present, frames).max(1)
    above = best > otsu(best)[0][:, None]
    phrases = torch.arange(margins.shape[1], device=margins.device)[:, None]
    own = (above[:, None] & (owner[:, None] == phrases)).to(margins)
    rest = (~above).to(margins)
    low = (margins * rest[:, None]).sum(-1) / rest.sum(-1, keepdim=True).clamp_min(1)
    count = own.sum(-1)
    high = (margins * own).sum(-1) / count.clamp_min(1)
    measured = (margins - low[..., None]) / (high - low).clamp_min(_LEAST_CONTRAST)[..., None]
    measured = torch.where(count[..., None] > 0, measured, 0.0)
    return unstack_frames(measured.unflatten(2, size), frames)


def clearest(
    margins: Sequence[Tensor], spans: Sequence[float], frames: int = 1, present: Tensor | None = None
) -> Tensor:
    """Choose the margins whose best values fall into two classes that are furthest apart (not in the paper).

    margins: several of [B, K, h, w], each the scores of the same objects minus other evidence of the background. spans: the
    range that each of them can have; the variance between the classes (`otsu`) is divided by its square, so that a wider
    range is no advantage. frames: this many consecutive samples are the frames of one video, for which one choice is made.
    present: bool [B, K], False for phrases that take no part.
    Returns [B, K, h, w], on a tie the first. Raises ValueError for lengths or shapes that differ.

    >>> vague, clear = torch.tensor([[[[0.4, 0.5]]]]), torch.tensor([[[[0.1, 0.9]]]])
    >>> clearest([vague, clear], [1, 1]).flatten().tolist() == clear.flatten().tolist()
    True
    """
    if not margins or len(margins) != len(spans) or len({tuple(each.shape) for each in margins}) > 1:
        raise ValueError(
            f"Got margins of shapes {[tuple(each.shape) for each in margins]} and {len(spans)} spans: pass at least one, all of "
            "the same shape [B, K, h, w], and one span for each."
        )
    several = torch.stack([stack_frames(finite(each), frames) for each in margins])
    apart = torch.stack(
        [
            otsu(_of_present(each.flatten(2), present, frames).amax(1))[1] / span**2
            for each, span in zip(several, spans, strict=True)
        ]
    )
    choice = apart.argmax(0)[None, :, None, None, None].expand(1, *several.shape[1:])
    return unstack_frames(several.gather(0, choice)[0], frames)


def find_present(attention: Tensor, shares: Tensor, frames: int = 1) -> Tensor:
    """Find the phrases whose things are in the image.

    A phrase is absent if its largest attention is less than half of that of the strongest phrase of the image, and so is its
    largest share of the attention to content words. Both, because attention alone misses things whose words get little of it
    everywhere, and shares alone those beside a thing of a similar name. A phrase that is alone is never absent.
    attention, shares: [B, K, h, w], propagated, not normalised. frames: this many consecutive samples are the frames of one
    video, in which a phrase is present if it is in any of them.
    Returns bool [B, K]. NaN counts as 0. Raises ValueError for shapes that differ.

    >>> attention = torch.tensor([[[[0.0, 0.9]], [[0.3, 0.1]]]])  # two phrases, 1 x 2 pixels
    >>> find_present(attention, attention).tolist(), find_present(attention, torch.ones(1, 2, 1, 2)).tolist()
    ([[True, False]], [[True, True]])
    """
    check_ndim("attention", attention, "B K h w")
    if attention.shape != shares.shape:
        raise ValueError(
            f"attention {tuple(attention.shape)} and shares {tuple(shares.shape)} differ: pass both for the same phrases."
        )
    found = torch.zeros(attention.shape[:2], dtype=torch.bool, device=attention.device)
    for maps in (attention, shares):
        peaks = stack_frames(finite(maps), frames).amax((2, 3))
        largest = peaks.amax(1, keepdim=True)
        found |= (peaks >= _ABSENT * largest).repeat_interleave(frames, 0)
    return found


def outdone(scores: Tensor, rivals: Tensor, frames: int = 1) -> Tensor:
    """Find the pixels that another word of the prompt has a better claim to than a phrase (not in the paper).

    Such a word has a higher score there, and one that is further above its own mean. Both, because a word that means no place
    may have high scores everywhere, and a thing that fills the image is nowhere far above its mean.
    scores: [B, K, h, w], of the phrases. rivals: [B, R, h, w], of the other words. frames: this many consecutive samples are the
    frames of one video, which share the means.
    Returns bool [B, K, h, w], all False without rivals. NaN counts as 0. Raises ValueError for shapes that do not fit.

    >>> scores = torch.tensor([[[[0.9, 0.7, 0.0, 0.0]]]])  # one phrase, 1 x 4 pixels: it reaches into the place of another word
    >>> rivals = torch.tensor([[[[0.0, 0.8, 0.9, 0.0]], [[0.95, 0.95, 0.95, 0.95]]]])
    >>> outdone(scores, rivals).flatten().tolist()
    [False, True, True, True]
    """
    check_ndim("scores", scores, "B K h w")
    if scores.shape[:1] + scores.shape[2:] != rivals.shape[:1] + rivals.shape[2:]:
        raise ValueError(
            f"scores {tuple(scores.shape)} and rivals {tuple(rivals.shape)} differ: pass both for the same pixels."
        )
    if rivals.shape[1] == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    own, other = (stack_frames(finite(each), frames) for each in (scores, rivals))
    above, beyond = (each - each.mean((2, 3), keepdim=True) for each in (own, other))
    ahead = [
        torch.minimum(other - own[:, k : k + 1], beyond - above[:, k : k + 1]).amax(1) > 0 for k in range(own.shape[1])
    ]
    return unstack_frames(torch.stack(ahead, 1), frames)


def _of_present(margins: Tensor, present: Tensor | None, frames: int) -> Tensor:
    """Margins [B / frames, K, N] with those of absent phrases below all others."""
    if present is None:
        return margins
    lowest = margins.amin((1, 2), keepdim=True)
    return torch.where(present[::frames, :, None], margins, lowest)
