"""Spatial refinement of score maps.

The method's own way is `propagate`: spread each object's scores along the model's self-attention. `proposal_merge` and
`prototype` are two others that the reference implementation offers and the paper's settings do not use; those in
`refine_image` look at the picture. `refinement` knows them by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import resize_self_map
from .resize import Grid, Range, apart, check_ndim, finite, joined, resize_nearest, stretch, working_dtype


def mean_affinity(self_maps: Sequence[Tensor], grids: Sequence[Grid], size: Grid) -> Tensor:
    """Mean of the layers' self-attention at a common grid.

    self_maps: one head-mean [B, Nl, Nl] per layer, on `grids`. Returns [B, N, N], N = size[0]*size[1]; rows are queries
    and are not renormalised (keys bilinear, queries nearest, as for the layer scores).
    Raises ValueError when there is no layer or the shapes do not fit.
    """
    if not self_maps or len(self_maps) != len(grids):
        raise ValueError(
            f"Got {len(self_maps)} self-attention maps and {len(grids)} grids: pass at least one map and one (height, width) for each."
        )
    total: Tensor | None = None
    for self_map, grid in zip(self_maps, grids, strict=True):
        resized = resize_self_map(self_map, grid, size)
        total = resized if total is None else total + resized
    assert total is not None
    return total / len(self_maps)


def propagate(scores: Tensor, affinity: Tensor, order: int, range_: Range = "full", frames: int = 1) -> Tensor:
    """Apply x <- affinity x `order` times to each map, then stretch it to [0, 1].

    scores: [B, K, h, w]. affinity: [B, N, N], N = h*w, from `mean_affinity`. Returns [B, K, h, w].
    range_: of the stretch, see `resize.stretch`. frames: so many samples in a row are one film and share it.
    order 0 gives the scores back unchanged; maps that are zero everywhere stay zero.
    Many orders with a diffuse affinity flatten every map; one that ends flat up to rounding becomes zero.
    Raises ValueError when N is not h*w, the order is negative or the range unknown.
    """
    _check_fit(scores, affinity)
    if order < 0:
        raise ValueError(f"order is {order}: use 0 for no propagation or a positive number of steps.")
    dtype = working_dtype(scores, affinity)
    if order == 0:
        return finite(scores, dtype)
    x = finite(scores, dtype).flatten(2)
    transposed = finite(affinity, dtype).mT
    for _ in range(order):
        # rows of the affinity sum to anything between 0 and N: without this, many steps over- or underflow.
        # The scale is free, the final stretch takes it out.
        x = _scaled(x, frames) @ transposed
    x = _scaled(x, frames).reshape(scores.shape)
    return apart(stretch(joined(x, frames), range_), frames)


def _scaled(x: Tensor, frames: int) -> Tensor:
    """Each map of [B, K, N] by its largest number, or by that of its film."""
    peak = x.abs().amax(-1, keepdim=True)
    if frames > 1:
        peak = peak.unflatten(0, (-1, frames)).amax(1).repeat_interleave(frames, 0)
    return x / torch.where(peak > torch.finfo(x.dtype).tiny, peak, 1.0)


def proposal_merge(
    scores: Tensor, affinity: Tensor, stride: int = 4, distance: float = 2e-4, rounds: int = 3, least: float = 0.5
) -> Tensor:
    """Segments found in the affinity alone, each given whole to the object that scores best on it.

    Every `stride`-th pixel of both axes proposes its affinity row; rows closer than `distance` (a symmetric
    Kullback-Leibler divergence, mean over pixels) are averaged, in `rounds` greedy passes. A pixel belongs to the proposal
    that is largest there, a proposal to the object with the highest mean score in it, if that is above `least`.

    scores: [B, K, h, w]. affinity: [B, N, N], N = h*w. Returns float32 masks [B, K, h, w] of exactly 0 and 1.
    Raises ValueError when N is not h*w or stride is below 1.
    """
    _check_fit(scores, affinity)
    if stride < 1:
        raise ValueError(f"stride is {stride}: use 1 for a proposal at every pixel or a larger step.")
    dtype = working_dtype(scores, affinity)
    maps = finite(scores, dtype).flatten(2)
    height, width = scores.shape[-2:]
    raster = torch.arange(height * width, device=scores.device).reshape(height, width)
    seeds = raster[::stride, ::stride].flatten()
    result = torch.zeros_like(maps, dtype=torch.float32)
    for sample, rows in enumerate(finite(affinity, dtype).clamp_min(0)):
        proposals = rows[seeds]
        near = _divergence(proposals, rows) < distance
        near[torch.arange(len(seeds), device=near.device), seeds] = True  # rounding must not part a row from itself
        proposals = near.to(dtype) @ rows
        proposals = proposals / proposals.sum(1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        for _ in range(rounds):
            proposals = _merge_once(proposals, distance)
        segment = F.one_hot(proposals.argmax(0), len(proposals)).to(dtype)  # [N, M]
        means = maps[sample] @ segment / segment.sum(0).clamp_min(1)  # [K, M]
        best, owner = means.max(0).values, means.argmax(0)
        owned = F.one_hot(owner, maps.shape[1]).to(dtype) * (best > least)[:, None]  # [M, K]
        result[sample] = (segment @ owned).T
    return result.reshape(scores.shape)


def prototype(scores: Tensor, feature: Tensor) -> Tensor:
    """Give each pixel to the object whose mean feature is most like its own (cosine).

    scores: [B, K, h, w] weights of the means, not negative. feature: [B, C, hf, wf] dense feature of the model, brought to
    the size of the scores by bicubic resizing. Returns float32 masks [B, K, h, w] of exactly 0 and 1: one object for each
    pixel, the first on a tie. A map that is zero everywhere, as that of an absent background, has likeness 0 and so takes
    the pixels unlike every object. Raises ValueError when the batches differ.
    """
    check_ndim("scores", scores, "B K h w")
    check_ndim("feature", feature, "B C h w")
    if scores.shape[0] != feature.shape[0]:
        raise ValueError(
            f"scores has {scores.shape[0]} samples, feature {feature.shape[0]}: pass both for the same batch."
        )
    dtype = working_dtype(scores, feature)
    dense, maps = finite(feature, dtype), finite(scores, dtype)
    height, width = dense.shape[-2:]
    weight = resize_nearest(maps, (height, width))
    means = torch.einsum("bkhw,bchw->bkc", weight, dense)  # cosine: dividing by the weights' sum would change nothing
    dense = F.interpolate(dense, size=tuple(maps.shape[-2:]), mode="bicubic", align_corners=False)
    alike = torch.einsum("bkc,bchw->bkhw", F.normalize(means, dim=-1), F.normalize(dense, dim=1))
    return torch.zeros_like(alike, dtype=torch.float32).scatter_(1, alike.argmax(1, keepdim=True), 1.0)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Mean over j of (b_j - a_j)(ln b_j - ln a_j) for all pairs of rows [M, N] and [K, N] -> [M, K], without an M x K x N tensor."""
    log_first, log_second = (first + 1e-4).log(), (second + 1e-4).log()
    own_first = (first * log_first).sum(1)[:, None]
    own_second = (second * log_second).sum(1)
    return (own_first + own_second - first @ log_second.T - log_first @ second.T) / first.shape[1]


def _merge_once(proposals: Tensor, distance: float) -> Tensor:
    """One greedy pass: take the first proposal, average all that are close to it, go on with the rest."""
    merged = []
    while len(proposals):
        near = _divergence(proposals[:1], proposals)[0] < distance
        near[0] = True
        merged.append(proposals[near].mean(0))
        proposals = proposals[~near]
    return torch.stack(merged)


def _check_fit(scores: Tensor, affinity: Tensor) -> None:
    check_ndim("scores", scores, "B K h w")
    check_ndim("affinity", affinity, "B N N")
    batch, _, height, width = scores.shape
    tokens = height * width
    if tuple(affinity.shape) != (batch, tokens, tokens):
        raise ValueError(
            f"affinity has shape {tuple(affinity.shape)} but the scores are {height} x {width}: expected "
            f"[{batch}, {tokens}, {tokens}]; build it with mean_affinity at size ({height}, {width})."
        )
