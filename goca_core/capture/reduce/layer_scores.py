"""What becomes of self-attention maps while their rows come in, so that no whole map need be held for it.

A map of 64x64 tokens takes 64 MB in full precision. Of each layer's only a sum of products with the reference affinity and
its share in a mean are wanted, and both can be made of some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layers import LayerScore, resize_keys
from ...tensors import Grid, finite, nearest_index

# Rows of a held map that are compared with the reference at a time.
_ROWS = 512

Take = Callable[[int, slice, Tensor], None]
"""Takes rows [B, n, M] of the map [M, M] of one frame: its number, which rows, and the rows."""


class Agreement:
    """Agreement of one layer with the reference, not normalised, by some methods (see ``layers.LayerScore``).

    ``affinity``: the reference P [B * frames, M, M].
    """

    def __init__(self, affinity: Tensor, frames: int, methods: Sequence[str]) -> None:
        self._affinity = affinity.unflatten(0, (-1, frames))
        self._scores = {method: [LayerScore(method) for _ in range(frames)] for method in methods}

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        ours = self._affinity[:, frame, rows]
        for scores in self._scores.values():
            scores[frame].add(ours, part)

    def result(self) -> dict[str, Tensor]:
        """Method -> [B * frames]."""
        return {
            method: torch.stack([score.result() for score in scores], 1).flatten()
            for method, scores in self._scores.items()
        }


class Kept:
    """A map that is kept, in its own precision or another."""

    def __init__(self, frames: int, dtype: torch.dtype | None = None) -> None:
        self._frames, self._dtype = frames, dtype
        self._map: Tensor | None = None

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        if self._map is None:
            batch, _, tokens = part.shape
            self._map = part.new_empty(batch, self._frames, tokens, tokens, dtype=self._dtype)
        self._map[:, frame, rows] = part

    def rows(self, frame: int, rows: slice) -> Tensor:
        """Rows that were taken before, to be changed."""
        return self._whole()[:, frame, rows]

    def result(self) -> Tensor:
        """[B * frames, M, M]"""
        return self._whole().flatten(0, 1)

    def _whole(self) -> Tensor:
        if self._map is None:
            raise ValueError("No rows were taken: the map is taken while its attention call is being read.")
        return self._map


class Mean:
    """The mean of the maps of several layers."""

    def __init__(self, frames: int) -> None:
        self._kept, self._count = Kept(frames), 0

    def next_layer(self) -> None:
        """What is taken from here on is of another layer."""
        self._count += 1

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        if self._count == 1:
            self._kept.take(frame, rows, finite(part))
        else:
            self._kept.rows(frame, rows).lerp_(finite(part), 1 / self._count)

    def result(self) -> Tensor:
        """[B * frames, M, M]"""
        return self._kept.result()


class Reference:
    """The reference affinity P of one forward pass, and the agreement of layers with it."""

    def __init__(self, affinity: Tensor, grid: Grid) -> None:
        self.affinity, self.grid = affinity, grid
        self._folded: dict[Grid, Tensor] = {grid: affinity}

    def score(self, layer: Tensor, grid: Grid, method: str) -> Tensor:
        """Agreement [B] of a layer's self-attention [B, M, M] on ``grid``, not normalised (see ``layers.LayerScore``).

        In float32, some rows at a time: both may be held in half precision.
        """
        if method == "dot-product similarity":
            # The score is linear in the layer's map, so P can be brought to the layer's grid once instead of bringing
            # every layer to P's: a sixteenth of the work where the layer has half the side.
            pairs = zip(self._fold(grid).split(_ROWS, 1), layer.split(_ROWS, 1), strict=True)
            return torch.stack([(ours.float() * theirs.float()).sum((1, 2)) for ours, theirs in pairs]).sum(0)
        score = LayerScore(method)
        index = nearest_index(grid, self.grid, layer.device)
        for start in range(0, len(index), _ROWS):
            rows = layer[:, index[start : start + _ROWS]].float()
            score.add(self.affinity[:, start : start + _ROWS], resize_keys(rows, grid, self.grid))
        return score.result()

    def _fold(self, grid: Grid) -> Tensor:
        if grid not in self._folded:
            batch, device = self.affinity.shape[0], self.affinity.device
            queries = torch.zeros(batch, grid[0] * grid[1], self.affinity.shape[-1], device=device)
            index = nearest_index(grid, self.grid, device)
            for some, rows in zip(index.split(_ROWS), self.affinity.split(_ROWS, 1), strict=True):
                queries.index_add_(1, some, rows.float())
            down, across = (_bilinear(a, b, queries) for a, b in zip(grid, self.grid, strict=True))
            keys = queries.unflatten(-1, self.grid)
            self._folded[grid] = torch.einsum("bnyx,yi,xj->bnij", keys, down, across).flatten(2)
        return self._folded[grid]


def _bilinear(source: int, target: int, like: Tensor) -> Tensor:
    """The matrix [target, source] of bilinear resizing along one axis."""
    identity = torch.eye(source, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T
