"""From scores to masks: the background rules of the reference, independent thresholds, and clean-up.

Resize scores (`resize_scores`) before making masks, so that masks hold exactly 0 and 1. A resized mask would not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .tensors import (
    CPUS,
    Grid,
    check_choice,
    check_ndim,
    finite,
    resize_bilinear,
    working_dtype,
)

_LONGEST = 4096  # side up to which an accelerator blurs, with a matrix that fits into memory

BACKGROUND_RULES: tuple[str, ...] = ("offset", "vanilla", "max", "exact", "avg")
TWO_CLASSES = "two classes"
"""The background as one of two classes of pixels, found in the scores themselves (`classes.two_classes`); not of the reference."""
CLEAREST = "clearest classes"
"""The same, for the evidence of the background that divides the pixels best (`classes.clearest`)."""
CLASS_RULES: tuple[str, ...] = (TWO_CLASSES, CLEAREST)
MASK_RULES: tuple[str, ...] = (*BACKGROUND_RULES, *CLASS_RULES)
"""Everything that can decide where the background is when masks are made."""


def resize_scores(scores: Tensor, size: Grid) -> Tensor:
    """Resize score maps, [B, K, h, w] -> [B, K, *size]: bilinear, half-pixel centres, no antialiasing.

    >>> resize_scores(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    check_ndim("scores", scores, "B K h w")
    return resize_bilinear(finite(scores), size)


def background_level(scores: Tensor, background: Tensor | None, rule: str, theta: float) -> Tensor:
    """Compute the score that an object must exceed at each pixel.

    With b the background map and t = theta: offset b+t, vanilla t, max max(b, t), exact b, avg (b+t)/2.
    scores: [B, K, h, w], used for its shape and precision. background: [B, h, w], or None for a map of zeros.
    Returns [B, h, w]. Raises ValueError for an unknown rule or shapes that do not fit.

    >>> background_level(torch.zeros(1, 2, 1, 2), torch.tensor([[[0.25, 0.75]]]), "max", 0.5).tolist()
    [[[0.5, 0.75]]]
    """
    check_choice("background rule", rule, BACKGROUND_RULES)
    check_ndim("scores", scores, "B K h w")
    shape = (scores.shape[0], *scores.shape[2:])
    if background is None:
        level = scores.new_zeros(shape, dtype=working_dtype(scores))
    elif tuple(background.shape) != shape:
        raise ValueError(
            f"background has shape {tuple(background.shape)}: expected [B, h, w] = {list(shape)}, the size of the scores."
        )
    else:
        level = finite(background, working_dtype(scores, background))
    if rule == "offset":
        return level + theta
    if rule == "vanilla":
        return torch.full_like(level, theta)
    if rule == "max":
        return level.clamp_min(theta)
    if rule == "avg":
        return (level + theta) / 2
    return level


def assign(scores: Tensor, background: Tensor | None = None, rule: str = "offset", theta: float = 0.0) -> Tensor:
    """Assign every pixel to its best object or to the background.

    scores: [B, K, h, w]. background: [B, h, w] or None. rule: one of BACKGROUND_RULES. theta: threshold of the rule.
    Returns int64 labels [B, h, w]: 0 is the background, k+1 is map k. On a tie the background wins, then the first object.
    NaN counts as 0. Raises ValueError for an unknown rule or shapes that do not fit.

    >>> scores = torch.tensor([[[[0.9, 0.2, 0.1]], [[0.3, 0.8, 0.1]]]])  # two objects, 1 x 3 pixels
    >>> assign(scores, rule="vanilla", theta=0.5).tolist()
    [[[1, 2, 0]]]
    """
    best = background_level(scores, background, rule, theta)
    labels = torch.zeros(best.shape, dtype=torch.long, device=best.device)
    # One object after the other: argmax over a few maps takes ten times as long, because their pixels are far apart.
    for label, score in enumerate(finite(scores, best.dtype).unbind(1), start=1):
        better = score > best
        labels.masked_fill_(better, label)
        best = torch.where(better, score, best)
    return labels


def threshold(scores: Tensor, background: Tensor | None = None, rule: str = "vanilla", theta: float = 0.5) -> Tensor:
    """Make independent masks, which may overlap: where a score is above the level of the rule. Arguments as in `assign`.

    Returns bool [B, K, h, w]. Raises ValueError as `assign` does.

    >>> threshold(torch.tensor([[[[0.9, 0.2]], [[0.7, 0.8]]]])).tolist()
    [[[[True, False]], [[True, True]]]]
    """
    level = background_level(scores, background, rule, theta)
    return finite(scores, level.dtype) > level[:, None]


def one_hot(labels: Tensor, objects: int, check: bool = True) -> Tensor:
    """Turn labels [B, h, w] from `assign` into float32 masks [B, K, h, w] of exactly 0 and 1. Label k+1 becomes mask k.

    objects: K. check: whether to raise ValueError for a label outside 0..K, which makes the CPU wait for an accelerator.

    >>> one_hot(torch.tensor([[[1, 2, 0]]]), 2).tolist()
    [[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]]
    """
    check_ndim("labels", labels, "B h w")
    if check and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= objects:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}: expected 0 (background) to {objects}; "
            "pass the number of objects the labels were made from."
        )
    ids = torch.arange(1, objects + 1, device=labels.device)
    return (labels[:, None] == ids[:, None, None]).to(torch.float32)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur each map of [..., h, w] with a Gaussian, sigma in pixels. Borders are reflected, so the sum of a map is kept.

    Masks become soft, in [0, 1]. sigma 0 changes nothing. Raises ValueError for a negative sigma.

    >>> [round(value, 2) for value in smooth(torch.tensor([[0.0, 1.0, 0.0]]), 0.5).flatten().tolist()]
    [0.11, 0.79, 0.11]
    """
    if sigma < 0:
        raise ValueError(f"sigma is {sigma}: use 0 for no smoothing or a positive width in pixels.")
    maps = finite(maps)
    if sigma == 0 or maps.numel() == 0:
        return maps
    if maps.device.type not in CPUS and max(maps.shape[-2:]) <= _LONGEST:
        rows, columns = (_gaussian_matrix(side, sigma, maps.device).to(maps.dtype) for side in maps.shape[-2:])
        return rows @ maps @ columns.mT
    stack = maps.reshape(-1, *maps.shape[-2:]).cpu().numpy()
    blurred = ndimage.gaussian_filter(stack, sigma=(0, sigma, sigma), mode="reflect")
    return torch.from_numpy(blurred).to(maps.device).reshape(maps.shape)


@lru_cache(maxsize=8)
def _gaussian_matrix(side: int, sigma: float, device: torch.device) -> Tensor:
    """The matrix that blurs an axis, [side, side]. Kept, because each upload makes the CPU wait for the device."""
    blurred = ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="reflect")
    with torch.inference_mode(False):  # it is used in other runs, which may not be in inference mode
        return torch.from_numpy(blurred).to(device)


def largest_component(masks: Tensor) -> Tensor:
    """Keep only the largest 8-connected component of each mask of [B, K, h, w]; on a tie, the first in raster order.

    Values above one half count as inside. Returns exactly 0 and 1, in the dtype of the input. An empty mask stays empty.

    >>> largest_component(torch.tensor([[[[1.0, 0.0, 1.0, 1.0]]]])).tolist()
    [[[[0.0, 0.0, 1.0, 1.0]]]]
    """
    check_ndim("masks", masks, "B K h w")
    inside = (masks > 0.5).reshape(-1, *masks.shape[-2:]).cpu().numpy()
    kept = np.zeros_like(inside)
    for source, target in zip(inside, kept, strict=True):
        patches, count = ndimage.label(source, structure=np.ones((3, 3), dtype=int))
        if count:
            sizes = np.bincount(patches.ravel())
            sizes[0] = 0  # the pixels outside the mask
            target[...] = patches == sizes.argmax()
    return torch.from_numpy(kept).to(masks.device, masks.dtype).reshape(masks.shape)


def remove_small(masks: Tensor, share: float) -> Tensor:
    """Remove the 8-connected components of each mask of [B, K, h, w] that cover less than a fraction ``share`` of the image.

    Values above one half count as inside. Returns exactly 0 and 1, in the dtype of the input. share 0 removes nothing.
    Raises ValueError for a share outside 0..1.

    >>> remove_small(torch.tensor([[[[1.0, 0.0, 1.0, 1.0]]]]), 0.5).tolist()
    [[[[0.0, 0.0, 1.0, 1.0]]]]
    """
    check_ndim("masks", masks, "B K h w")
    if not 0 <= share <= 1:
        raise ValueError(f"remove_small got a fraction of {share:g} of the image; use a fraction from 0 to 1.")
    inside = (masks > 0.5).reshape(-1, *masks.shape[-2:]).cpu().numpy()
    least = share * masks.shape[-2] * masks.shape[-1]
    kept = np.zeros_like(inside)
    for source, target in zip(inside, kept, strict=True):
        patches, _ = ndimage.label(source, structure=np.ones((3, 3), dtype=int))
        target[...] = source & (np.bincount(patches.ravel())[patches] >= least)
    return torch.from_numpy(kept).to(masks.device, masks.dtype).reshape(masks.shape)


def fill_holes(masks: Tensor, disjoint: bool = False) -> Tensor:
    """Fill the holes of each mask of [B, K, h, w]: areas that it encloses completely (a diagonal step does not leave a hole).

    disjoint: keep masks from overlapping: fill only pixels of no mask, and give a hole that several masks enclose to the
    innermost one. Values above one half count as inside. Returns exactly 0 and 1, in the dtype of the input.

    >>> ring = torch.tensor([[[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]]])
    >>> fill_holes(ring)[0, 0, 1].tolist()
    [1.0, 1.0, 1.0]
    """
    check_ndim("masks", masks, "B K h w")
    inside = (masks > 0.5).cpu().numpy()
    filled = np.zeros_like(inside)
    for source, target in zip(inside, filled, strict=True):
        free = ~source.any(0)
        smallest = np.full(free.shape, np.inf)
        owner = np.full(free.shape, -1)
        for number, mask in enumerate(source):
            holes, _ = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
            if not disjoint:
                target[number] = mask | (holes > 0)
                continue
            size = np.where(holes > 0, np.bincount(holes.ravel())[holes], np.inf)
            owner[free & (size < smallest)] = number
            smallest = np.minimum(smallest, size)
        if disjoint:
            target[...] = source | (owner == np.arange(len(source))[:, None, None])
    return torch.from_numpy(filled).to(masks.device, masks.dtype).reshape(masks.shape)
