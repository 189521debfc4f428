"""Propagation of score maps along the model's self-attention, which is the spatial refinement of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import averaging, resize_self_map
from ..tensors import Grid, Range, check_ndim, finite, stack_frames, stretch, unstack_frames, working_dtype


def mean_affinity(self_maps: Sequence[Tensor], grids: Sequence[Grid], size: Grid) -> Tensor:
    """Compute the mean of the layers' self-attention on a common grid.

    self_maps: one map [B, Nl, Nl] per layer, the mean over its heads, on `grids`. Keys are resized bilinear, queries
    nearest, as for the layer scores. Returns [B, N, N], N = size[0]*size[1]; rows are queries and are not renormalised.
    Raises ValueError when there is no layer or the shapes do not fit.

    >>> mean_affinity([torch.eye(2)[None], torch.full((1, 2, 2), 0.5)], [(1, 2)] * 2, (1, 2)).tolist()
    [[[0.75, 0.25], [0.25, 0.75]]]
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


def spread(maps: Tensor, affinity: Tensor, order: int) -> Tensor:
    """Apply `order` propagation steps whose rows sum to one, so that values keep their scale: each becomes a mean of others.

    maps: [B, K, h, w]. affinity: [B, N, N], N = h*w; its rows are divided by their sums. Returns [B, K, h, w]. Raises
    ValueError when N is not h*w.

    >>> affinity = torch.tensor([[[0.1, 0.1, 0.0], [0.1, 0.1, 0.0], [0.0, 0.0, 1.0]]])  # the first two pixels are similar
    >>> spread(torch.tensor([[[[1.0, 0.0, 0.5]]]]), affinity, 2).tolist()
    [[[[0.5, 0.5, 0.5]]]]
    """
    _check_fit(maps, affinity)
    dtype = working_dtype(maps, affinity)
    x, transposed = finite(maps, dtype).flatten(2), averaging(affinity, dtype)
    for _ in range(order):
        x = x @ transposed
    return x.reshape(maps.shape)


def propagate(scores: Tensor, affinity: Tensor, order: int, range_: Range = "full", frames: int = 1) -> Tensor:
    """Apply `order` propagation steps x <- affinity x to each map, then stretch it to [0, 1].

    scores: [B, K, h, w]. affinity: [B, N, N], N = h*w, from `mean_affinity`. order: number of steps; 0 returns the scores
    unchanged. range_: range of the stretch, see `tensors.stretch`. frames: this many consecutive samples are the frames of
    one video and share a scale.
    Returns [B, K, h, w]. Maps that are zero everywhere stay zero. Many steps with a diffuse affinity flatten every map; a
    map that becomes constant up to rounding becomes zero.
    Raises ValueError when N is not h*w, order is negative, or the range is unknown.

    >>> affinity = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])  # the first two pixels are similar
    >>> propagate(torch.tensor([[[[1.0, 0.0, 0.0]]]]), affinity, 1).tolist()
    [[[[1.0, 1.0, 0.0]]]]
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
        # Rows of the affinity may sum to any value from 0 to N, so many steps would over- or underflow without this. The
        # scale does not matter, because the final stretch removes it.
        x = _scaled(x, frames) @ transposed
    x = _scaled(x, frames).reshape(scores.shape)
    return unstack_frames(stretch(stack_frames(x, frames), range_), frames)


def _scaled(x: Tensor, frames: int) -> Tensor:
    """Divide each map of [B, K, N] by its largest magnitude, or by that of its video."""
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
