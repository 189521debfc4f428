"""Refinement with segments of the self-attention, and with prototypes of a dense feature.

The reference implementation offers both; the paper's settings use neither.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import check_ndim, finite, resize_nearest, working_dtype
from .propagation import _check_fit


def proposal_merge(
    scores: Tensor, affinity: Tensor, stride: int = 4, distance: float = 2e-4, rounds: int = 3, least: float = 0.5
) -> Tensor:
    """Find segments in the affinity alone, and give each to the object with the highest mean score in it.

    The affinity row of every `stride`-th pixel of both axes is a proposal. Rows closer than `distance` (symmetric
    Kullback-Leibler divergence, mean over pixels) are averaged, in `rounds` greedy passes. A pixel belongs to the proposal
    that is largest there. A proposal belongs to the object with the highest mean score in it, if that is above `least`.

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
        near[torch.arange(len(seeds), device=near.device), seeds] = True  # rounding must not separate a row from itself
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
    """Give each pixel to the object whose mean feature is most similar to its own (cosine similarity).

    scores: [B, K, h, w], weights of the means, not negative. feature: [B, C, hf, wf], a dense feature of the model; it is
    resized to the scores, bicubic. Returns float32 masks [B, K, h, w] of exactly 0 and 1, one object for each pixel, the
    first on a tie. A map that is zero everywhere, such as that of an absent background, has similarity 0, so it gets the
    pixels with a negative similarity to every object. Raises ValueError when the batches differ.
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
    similarity = torch.einsum("bkc,bchw->bkhw", F.normalize(means, dim=-1), F.normalize(dense, dim=1))
    return torch.zeros_like(similarity, dtype=torch.float32).scatter_(1, similarity.argmax(1, keepdim=True), 1.0)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Mean over j of (b_j - a_j)(ln b_j - ln a_j) for all pairs of rows [M, N] and [K, N] -> [M, K], without an M x K x N tensor."""
    log_first, log_second = (first + 1e-4).log(), (second + 1e-4).log()
    own_first = (first * log_first).sum(1)[:, None]
    own_second = (second * log_second).sum(1)
    return (own_first + own_second - first @ log_second.T - log_first @ second.T) / first.shape[1]


def _merge_once(proposals: Tensor, distance: float) -> Tensor:
    """One greedy pass: average the first proposal with all that are close to it, then continue with the rest."""
    merged = []
    while len(proposals):
        near = _divergence(proposals[:1], proposals)[0] < distance
        near[0] = True
        merged.append(proposals[near].mean(0))
        proposals = proposals[~near]
    return torch.stack(merged)
