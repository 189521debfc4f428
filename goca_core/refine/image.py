"""Refinement of score maps with the image: edges of the scores move to where the colours change.

Both methods first resize the maps to the size of the image. They treat each map separately, and keep it within its own
range of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import CPUS, check_ndim, finite, resize_bilinear, working_dtype

_EIGHT = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x)
_CONTRAST = 0.1  # fraction of the local standard deviation that counts as one unit of difference
_STEP = 1 / 255  # a difference of one 8-bit step is not an edge, even in a uniform area
# Elements of the neighbourhoods that are compared at once: few for the cache of a CPU, many for an accelerator, for which
# starting a kernel takes longer than a small one.
_BAND, _WIDE_BAND = 2**20, 2**25
_KEPT = 2**28  # weights kept between iterations (1 GiB); if there are more, each iteration computes them again


def pamr(
    scores: Tensor, image: Tensor, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8), kept: int = _KEPT
) -> Tensor:
    """Pixel-adaptive mask refinement: each pixel becomes a mean of its neighbours, weighted by similarity of colour.

    The neighbours are the eight around a pixel at the distance of each dilation; edges repeat. Their weights are
    softmax(-k), with k = |colour difference| / (0.1 s + 1/255), averaged over the colour channels, and s the standard
    deviation of that channel in the neighbourhood.
    Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels (CVPR 2020), section on PAMR, with
    the normalisation of the authors' code (s, where the paper has its square) and a floor for uniform areas.

    scores: [B, K, h, w]. image: [B or 1, H, W, 3] in [0, 1]. dilations: in pixels of the image. kept: number
    of weights, one per pixel and neighbour, that a sample may keep in memory; with fewer, it is slower and the result is
    the same. Returns [B, K, H, W]; in a uniform image each iteration is the plain mean of the neighbours.
    Raises ValueError for shapes that do not fit, no dilation, or a number below 1.
    """
    if iterations < 1 or not dilations or min(dilations) < 1:
        raise ValueError(
            f"pamr got {iterations} iterations and dilations {tuple(dilations)}: use at least one iteration and one dilation, "
            "each 1 or more."
        )
    maps, guide = _onto(scores, image)
    reach = max(dilations)
    around = [(y * step, x * step) for step in dilations for y, x in _EIGHT]
    return torch.stack(
        [_adapt(part, by, around, reach, iterations, kept) for part, by in zip(maps, guide, strict=True)]
    )


def _adapt(
    maps: Tensor, guide: Tensor, around: Sequence[tuple[int, int]], reach: int, iterations: int, kept: int
) -> Tensor:
    """Refine one sample: maps [K, H, W], guide [3, H, W]. Works in bands of rows to bound memory."""
    height, width = maps.shape[-2:]
    rows = max(1, (_BAND if maps.device.type in CPUS else _WIDE_BAND) // (3 * len(around) * width))
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
    return maps.clamp(low, high)  # means stay within the range, except for rounding


def guided_filter(scores: Tensor, image: Tensor, radius: int = 8, eps: float = 1e-3) -> Tensor:
    """Guided filter with a colour guide: in each window, the scores are fitted by a linear function of the colours.

    Source: He, Sun and Tang, Guided Image Filtering (PAMI 2013). From radius 8 on with the subsampling of He and Sun,
    Fast Guided Filter (2015), by a quarter of the radius. The filter is kornia's.

    scores: [B, K, h, w]. image: [B or 1, H, W, 3] in [0, 1]. radius: of the square window, in pixels of the
    image. eps: variance of the colours below which a window is smoothed. Returns [B, K, H, W].
    Raises ValueError for shapes that do not fit, a radius below 1 or an eps that is not positive, and ImportError
    when kornia is not installed.
    """
    if radius < 1 or eps <= 0:
        raise ValueError(
            f"The guided filter got radius {radius} and eps {eps}: use a radius of 1 or more and a positive eps."
        )
    try:
        from kornia.filters import (
            guided_blur,
        )  # imported here because it takes half a second and nothing else in the pack needs it
    except ImportError as error:
        raise ImportError(
            "The guided filter needs the package kornia, which is one of ComfyUI's requirements: install it with "
            "'pip install kornia', or refine with pamr."
        ) from error
    maps, guide = _onto(scores, image)
    height, width = maps.shape[-2:]
    step = max(1, radius // 4)
    # Subsampling needs sides that are multiples of its step, so edges are repeated and cropped again afterwards.
    missing = (0, -width % step, 0, -height % step)
    result = []
    for part, by in zip(maps.split(1), guide.split(1), strict=True):
        padded, padded_guide = (F.pad(image, missing, mode="replicate") for image in (part, by))
        fitted = guided_blur(padded_guide, padded, 2 * radius + 1, eps, border_type="replicate", subsample=step)
        # A linear fit exceeds the range of the scores where colours exceed those of the window.
        low, high = part.amin((2, 3), keepdim=True), part.amax((2, 3), keepdim=True)
        result.append(finite(fitted[..., :height, :width]).clamp(low, high))
    return torch.cat(result)


def check_image(image: Tensor, batch: int) -> None:
    """Raise ValueError unless `image` is [B or 1, H, W, 3 or more]."""
    check_ndim("image", image, "B H W 3")
    if image.shape[-1] < 3:
        raise ValueError(
            f"The image has {image.shape[-1]} channels: expected the three of a colour image, as the last axis."
        )
    if image.shape[0] not in (1, batch):
        raise ValueError(
            f"There are {image.shape[0]} images but scores for {batch}; use the images from the recorded sampler, or one "
            "image for all."
        )


def _onto(scores: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps at the size of the image, and the image as [B, 3, H, W], both in working precision."""
    check_ndim("scores", scores, "B K h w")
    check_image(image, scores.shape[0])
    dtype = working_dtype(scores, image)
    guide = finite(image[..., :3].to(scores.device), dtype).clamp(0, 1).movedim(-1, 1)
    guide = guide.expand(scores.shape[0], -1, -1, -1)
    return resize_bilinear(finite(scores, dtype), (guide.shape[2], guide.shape[3])), guide


def _pad(image: Tensor, reach: int) -> Tensor:
    """[C, H, W] with its edges repeated `reach` times on all sides."""
    return F.pad(image[None], (reach,) * 4, mode="replicate")[0]
