"""Spatial refinement of score maps.

The method's own way is `propagate`: spread each object's scores along the model's self-attention. `proposal_merge` and
`prototype` are two others that the reference implementation offers and the paper's settings do not use; those in
`refine_image` look at the picture. `refinement` knows them by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import resize_self_map
from ..tensors import Grid, Range, check_ndim, finite, stack_frames, stretch, unstack_frames, working_dtype


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
    return unstack_frames(stretch(stack_frames(x, frames), range_), frames)


def _scaled(x: Tensor, frames: int) -> Tensor:
    """Each map of [B, K, N] by its largest number, or by that of its film."""
    peak = x.abs().amax(-1, keepdim=True)
    if frames > 1:
        peak = peak.unflatten(0, (-1, frames)).amax(1).repeat_interleave(frames, 0)
    return x / torch.where(peak > torch.finfo(x.dtype).tiny, peak, 1.0)


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
