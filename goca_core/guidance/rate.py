"""Semantic-aware guidance: a guidance scale for each region instead of one for the whole image (S-CFG).

Classifier-free guidance is stronger in some regions than in others. S-CFG measures its strength in each region and scales
it to that of the foreground. The regions come from the token maps of GoCA or of S-CFG itself (`semantic`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..rescale import blur
from ..tensors import check_choice, check_ndim, finite, gaussian_blur, index_on, minmax, resize_nearest, working_dtype

_EPS = 1e-8


def regions(maps: Tensor, candidates: Sequence[int] | None = None, ties: Literal["first", "all"] = "first") -> Tensor:
    """Give each pixel to the token with the largest map.

    maps: [B, T, h, w], one rescaled and propagated map per token. candidates: token positions that may own pixels
    (default all); the reference leaves out everything after the last word, the end and padding tokens.
    ties: "first" gives a pixel to the first of equal tokens. "all" gives it to all of them, as the reference does, which
    adds their rates.
    Returns float32 masks [B, T, h, w] of exactly 0 and 1.
    Raises ValueError for a candidate outside 0..T-1, no candidate, or an unknown `ties`.
    """
    check_ndim("maps", maps, "B T h w")
    check_choice("ties", ties, ("first", "all"))
    maps = finite(maps)
    tokens = maps.shape[1]
    if candidates is not None:
        ids = [int(i) for i in candidates]
        if not ids or min(ids) < 0 or max(ids) >= tokens:
            raise ValueError(f"candidates are {ids}: use at least one token position, each within 0..{tokens - 1}.")
        allowed = torch.zeros(tokens, dtype=torch.bool, device=maps.device)
        allowed[index_on(maps.device, ids)] = True
        maps = maps.masked_fill(~allowed[:, None, None], -torch.inf)
    if ties == "all":
        return (maps == maps.amax(1, keepdim=True)).to(torch.float32)
    return torch.zeros_like(maps, dtype=torch.float32).scatter_(1, maps.argmax(1, keepdim=True), 1.0)


def foreground(background: Tensor) -> Tensor:
    """Find where the image is not background: minmax(blur(map)) below one half.

    background: [B, h, w], the propagated map of a token that attends to the background: the start token of the empty
    prompt if the text encoder has one, otherwise the end token of the prompt. A constant map makes everything foreground.
    Returns float32 [B, h, w] of exactly 0 and 1.
    """
    check_ndim("background", background, "B h w")
    return (minmax(blur(finite(background))) < 0.5).to(torch.float32)


def rate_map(
    cond: Tensor,
    uncond: Tensor,
    regions: Tensor,
    foreground: Tensor,
    scale: float,
    minimum: float = 0.8,
    maximum: float = 3.0,
    ceiling: float = 15.0,
    smooth: bool = True,
) -> Tensor:
    """Compute the factor on the guidance scale at each pixel (by S-CFG; the reference's generation scripts do the same).

    cond, uncond: [B, C, h, w] predictions of the same step (noise, velocity or sample: the rate does not depend on it).
    regions: integer labels [B, h, w], where each value from 0 on is a region, or masks [B, R, h, w].
    foreground: mask [B, h, w]. Both may have another size; they are resized to the predictions, nearest.
    scale: the guidance scale. minimum, maximum, ceiling: rates are clipped to [minimum, maximum], then so that
    rate * scale <= ceiling (the ceiling wins). smooth: blur with a 3 x 3 Gaussian at the end.

    Returns [B, h, w]. A pixel in no region has rate 1 before the clipping; where masks overlap, rates add up. A
    sample with an empty foreground, or with cond equal to uncond, has rate 1 everywhere, which is plain guidance.
    NaN counts as 0. Raises ValueError when shapes do not fit or a label is negative.
    """
    check_ndim("cond", cond, "B C h w")
    if cond.shape != uncond.shape:
        raise ValueError(
            f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} differ: pass two predictions of the same step."
        )
    batch, _, height, width = cond.shape
    dtype = working_dtype(cond, uncond)
    masks = _region_masks(regions, batch).to(dtype)
    check_ndim("foreground", foreground, "B h w")
    if foreground.shape[0] != batch:
        raise ValueError(
            f"foreground has {foreground.shape[0]} samples but cond has {batch}: pass one mask for each sample."
        )
    masks = resize_nearest(masks, (height, width)).flatten(2)
    fore = resize_nearest(finite(foreground, dtype), (height, width)).flatten(1)

    delta = finite(cond, dtype) - finite(uncond, dtype)
    peak = delta.abs().amax((1, 2, 3))
    # only ratios matter: scaled to a peak of 1, no square overflows and the epsilons below mean the same at every step
    push = (delta / torch.where(peak > 0, peak, 1.0)[:, None, None, None]).norm(dim=1).flatten(1)
    region_push = torch.einsum("bn,brn->br", push, masks) / (masks.sum(-1) + _EPS)
    fore_push = (push * fore).sum(-1) / (fore.sum(-1) + _EPS)
    gamma = fore_push[:, None] / (region_push + _EPS)
    rate = torch.einsum("br,brn->bn", gamma, masks)
    rate = torch.where(masks.sum(1) > 0, rate, 1.0).clamp(minimum, maximum)
    if scale > 0:
        rate = rate.clamp_max(ceiling / scale)
    rate = rate.unflatten(-1, (height, width))
    if smooth:
        # weights in the ratio 1/e : 1 : 1/e; blurs rate - 1, so that a rate of exactly 1 stays exactly 1
        rate = 1 + gaussian_blur(rate - 1, 3, 0.5**0.5)
    known = (fore.sum(-1) > 0) & (peak > 0)
    return torch.where(known[:, None, None], rate, 1.0)


def guided(cond: Tensor, uncond: Tensor, rate: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance with a rate per pixel: uncond + scale * rate * (cond - uncond).

    cond, uncond: [B, C, h, w]. rate: [B, h, w]. Returns [B, C, h, w] in working precision.
    Predictions that are not finite are passed on, so that a failure of the model is not hidden.
    Raises ValueError when shapes do not fit.
    """
    if cond.shape != uncond.shape or tuple(rate.shape) != (cond.shape[0], *cond.shape[2:]):
        raise ValueError(
            f"cond {tuple(cond.shape)}, uncond {tuple(uncond.shape)} and rate {tuple(rate.shape)} do not fit: "
            "expected [B, C, h, w] twice and [B, h, w]."
        )
    dtype = working_dtype(cond, uncond)
    base = uncond.to(dtype)
    return base + scale * rate.to(dtype)[:, None] * (cond.to(dtype) - base)


def _region_masks(regions: Tensor, batch: int) -> Tensor:
    """Turn labels [B, h, w] or masks [B, R, h, w] into masks [B, R, h, w]."""
    if regions.ndim not in (3, 4) or regions.shape[0] != batch:
        raise ValueError(
            f"regions has shape {tuple(regions.shape)}: expected labels [B, h, w] or masks [B, R, h, w] with B = {batch}."
        )
    if regions.ndim == 4:
        return finite(regions)
    if regions.is_floating_point():
        raise ValueError(
            "regions with three axes are labels and must be integers: give masks a region axis, [B, R, h, w]."
        )
    if int(regions.min()) < 0:
        raise ValueError(f"regions holds the label {int(regions.min())}: labels start at 0.")
    ids = torch.arange(int(regions.max()) + 1, device=regions.device)
    return regions[:, None] == ids[:, None, None]
