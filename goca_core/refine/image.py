"""Refinement of score maps by the picture: scores move to where its colours change.

Both bring the maps to the picture's size first, treat every map alike and apart, and stay within each map's own range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import check_ndim, finite, resize_bilinear, working_dtype

_EIGHT = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x)
_CONTRAST = 0.1  # share of the local standard deviation that counts as one unit of difference
_STEP = 1 / 255  # a difference of one 8-bit step is no edge, however even the surroundings are
_BAND = 2**20  # numbers in the neighbourhoods that are compared at once
_KEPT = 2**28  # weights kept over the iterations (1 GiB); beyond that they are computed anew in each


def pamr(
    scores: Tensor, picture: Tensor, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8), kept: int = _KEPT
) -> Tensor:
    """Pixel-adaptive mask refinement: each pixel becomes a mean of neighbours, those of its own colour above all.

    The neighbours are the eight around a pixel at the distance of each dilation; edges repeat. Their weights are
    softmax(-k) with k = |colour difference| / (0.1 s + 1/255), mean over the colours, and s the standard deviation of
    that colour in the neighbourhood.
    Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels (CVPR 2020), section on PAMR, with
    the normalisation of the authors' code (s, where the paper has its square) and a floor for even surroundings.

    scores: [B, K, h, w]. picture: [B or 1, H, W, 3] in [0, 1]. dilations: in pixels of the picture. Returns
    [B, K, H, W]; on an even picture each iteration is the plain mean of the neighbours. One sample holds up to `kept`
    weights, one for each pixel and neighbour; with fewer it is slower and the result the same.
    Raises ValueError for shapes that do not fit, no dilation, or a number below 1.
    """
    if iterations < 1 or not dilations or min(dilations) < 1:
        raise ValueError(
            f"pamr got {iterations} iterations and dilations {tuple(dilations)}: use at least one of each, from 1 on."
        )
    maps, guide = _onto(scores, picture)
    reach = max(dilations)
    around = [(y * step, x * step) for step in dilations for y, x in _EIGHT]
    return torch.stack(
        [_adapt(part, by, around, reach, iterations, kept) for part, by in zip(maps, guide, strict=True)]
    )


def _adapt(
    maps: Tensor, guide: Tensor, around: Sequence[tuple[int, int]], reach: int, iterations: int, kept: int
) -> Tensor:
    """One sample: maps [K, H, W], guide [3, H, W]. In bands of rows, so that what is compared at once stays small."""
    height, width = maps.shape[-2:]
    rows = max(1, _BAND // (3 * len(around) * width))
    bands = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    padded_guide = _pad(guide, reach)

    def shifted(padded: Tensor, band: slice, offset: tuple[int, int]) -> Tensor:
        down, across = reach + offset[0], reach + offset[1]
        return padded[:, band.start + down : band.stop + down, across : across + width]

    def weights(band: slice) -> Tensor:
        difference = torch.stack([shifted(padded_guide, band, offset) for offset in around]).sub_(guide[:, band])
        count = len(around) + 1  # the pixel itself counts too; its difference is zero
        mean = difference.sum(0) / count
        deviation = (difference.square().sum(0) / count - mean.square()).clamp_min(0).sqrt()
        return difference.abs_().div_(_CONTRAST * deviation + _STEP).mean(1).neg_().softmax(0)

    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    known = [weights(band) for band in bands] if len(around) * height * width <= kept else None
    for _ in range(iterations):
        padded, maps = _pad(maps, reach), torch.zeros_like(maps)
        for number, band in enumerate(bands):
            for weight, offset in zip(known[number] if known else weights(band), around, strict=True):
                maps[:, band].addcmul_(weight, shifted(padded, band, offset))
    return maps.clamp(low, high)  # means of values in the range, but for rounding


def guided_filter(scores: Tensor, picture: Tensor, radius: int = 8, eps: float = 1e-3) -> Tensor:
    """Guided filter with a colour guide: in each window the scores are fitted by a linear function of the colours.

    Source: He, Sun and Tang, Guided Image Filtering (PAMI 2013); from radius 8 on with the sub-sampling of He and Sun,
    Fast Guided Filter (2015), by a fourth of the radius. The filter is kornia's.

    scores: [B, K, h, w]. picture: [B or 1, H, W, 3] in [0, 1]. radius: of the square window, in pixels of the picture;
    eps: variance of the colours below which a window is smoothed. Returns [B, K, H, W].
    Raises ValueError for shapes that do not fit, a radius below 1 or an eps that is not positive, and ImportError
    when kornia is not installed.
    """
    if radius < 1 or eps <= 0:
        raise ValueError(
            f"The guided filter got radius {radius} and eps {eps}: use a radius from 1 on and a positive eps."
        )
    try:
        from kornia.filters import guided_blur  # here: half a second, and nothing else of the pack needs it
    except ImportError as error:
        raise ImportError(
            "The guided filter needs the package kornia, one of ComfyUI's own requirements: install it with "
            "'pip install kornia', or refine with pamr."
        ) from error
    maps, guide = _onto(scores, picture)
    height, width = maps.shape[-2:]
    step = max(1, radius // 4)
    # Sub-sampling wants sides that are multiples of its step; edges are repeated up to there and cut off again.
    missing = (0, -width % step, 0, -height % step)
    result = []
    for part, by in zip(maps.split(1), guide.split(1), strict=True):
        padded, padded_guide = (F.pad(image, missing, mode="replicate") for image in (part, by))
        fitted = guided_blur(padded_guide, padded, 2 * radius + 1, eps, border_type="replicate", subsample=step)
        # A line fitted to scores runs beyond them where the colours do.
        low, high = part.amin((2, 3), keepdim=True), part.amax((2, 3), keepdim=True)
        result.append(finite(fitted[..., :height, :width]).clamp(low, high))
    return torch.cat(result)


def check_picture(picture: Tensor, batch: int) -> None:
    """Raise ValueError unless `picture` is [B or 1, H, W, 3 or more]."""
    check_ndim("picture", picture, "B H W 3")
    if picture.shape[-1] < 3:
        raise ValueError(
            f"picture has {picture.shape[-1]} channels: expected the three of a colour picture, as the last axis."
        )
    if picture.shape[0] not in (1, batch):
        raise ValueError(
            f"There are {picture.shape[0]} pictures but scores for {batch}; give the pictures made by the recorded "
            "sampler, or a single one for all."
        )


def _onto(scores: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Maps at the size of the picture, and the picture as [B, 3, H, W], both in working precision."""
    check_ndim("scores", scores, "B K h w")
    check_picture(picture, scores.shape[0])
    dtype = working_dtype(scores, picture)
    guide = finite(picture[..., :3], dtype).to(scores.device).clamp(0, 1).movedim(-1, 1)
    guide = guide.expand(scores.shape[0], -1, -1, -1)
    return resize_bilinear(finite(scores, dtype), (guide.shape[2], guide.shape[3])), guide


def _pad(image: Tensor, reach: int) -> Tensor:
    """[C, H, W] with its edges repeated `reach` times on all sides."""
    return F.pad(image[None], (reach,) * 4, mode="replicate")[0]
