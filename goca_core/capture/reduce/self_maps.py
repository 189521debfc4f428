"""Mean self-attention over heads, collected while the softmax of a call is computed: on several grids, frame by frame.

The tokens of a video are one sequence, frame after frame, and attend to each other. From the softmax over all of them only
each frame's attention to itself is kept, like the image's attention to itself in joint attention: a matrix over all frames
would be far too large, and it is only used frame by frame. An image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...layers import resize_keys
from ...tensors import Grid, nearest_index


class Sink(Protocol):
    """Receives the self-attention of a layer on the grid ``target``, to score it, average it or store it."""

    target: Grid

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        """Take ``part`` [B, n, M], the rows ``rows`` (ascending) of the map [M, M] of one frame."""

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        """The layer is complete. ``whole``: its maps [B * frames, M, M] and their grid, if no rows were given before."""


class _Target:
    """One target grid: its query rows, ascending, and the row of those for each row of its map."""

    def __init__(self, grid: Grid, layer: Grid, frames: int) -> None:
        self.grid = grid
        index = nearest_index(layer, grid) if grid != layer else torch.arange(layer[0] * layer[1])
        self.rows, self.order = torch.unique(index, return_inverse=True)
        self.ascending = bool((self.order[1:] > self.order[:-1]).all())
        self.streamed: list[Sink] = []
        self.waiting: list[Sink] = []
        self.found: list[Tensor | None] = [None] * frames

    def whole(self) -> tuple[Tensor, Grid]:
        """The maps [B * frames, M, M], ordered by video and then frame, and their grid."""
        found = [part for part in self.found if part is not None]
        maps = [part if self.ascending else part[:, self.order.to(part.device)] for part in found]
        return torch.stack(maps, 1).flatten(0, 1), self.grid


class SelfMaps:
    """Passes the self-attention of one layer, on ``grid`` in each of ``frames``, to ``sinks``.

    For a coarser target grid, the nearest queries are taken and the keys are resized bilinearly, as the method does
    before it compares layers. For a finer target the map stays on the layer's own grid. So no map larger than the target
    is held in memory. A sink gets rows as they come in. It gets the whole map at the end if another sink on its grid
    needs the whole map, or if its rows come in another order.
    """

    def __init__(self, grid: Grid, sinks: Sequence[Sink], frames: int = 1) -> None:
        self._grid, self.frames, self._count = grid, frames, grid[0] * grid[1]
        self._targets: dict[Grid, _Target] = {}
        for sink in sinks:
            own = sink.target if sink.target[0] * sink.target[1] < self._count else grid
            if own not in self._targets:
                self._targets[own] = _Target(own, grid, frames)
            target = self._targets[own]
            (target.streamed if own == sink.target and target.ascending else target.waiting).append(sink)
        for target in self._targets.values():
            if target.waiting:
                target.waiting, target.streamed = [*target.streamed, *target.waiting], []
        needed = torch.unique(torch.cat([target.rows for target in self._targets.values()]))
        self._starts = torch.arange(frames + 1) * self._count
        self._needed = needed
        self.rows = None if len(needed) == self._count else torch.cat([needed + start for start in self._starts[:-1]])
        """The query rows that are needed, for all frames, ascending; None for all rows."""

    def keys_of(self, frame: int) -> slice:
        """The tokens of a frame."""
        return slice(frame * self._count, (frame + 1) * self._count)

    def rows_of(self, frame: int) -> Tensor:
        """The query rows that are needed for a frame."""
        return self._needed + frame * self._count

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, keys] of some query rows.

        ``numbers``: the numbers of the rows, ascending, on the CPU. The keys are those of all frames, or only those of the
        rows' own frame.
        """
        for frame, (first, last) in enumerate(pairwise(torch.searchsorted(numbers, self._starts).tolist())):
            if first < last:
                keys = self.keys_of(frame) if probs.shape[-1] > self._count else slice(None)
                self._add(frame, numbers[first:last] - frame * self._count, probs[:, :, first:last, keys])

    def _add(self, frame: int, rows: Tensor, probs: Tensor) -> None:
        for target in self._targets.values():
            first, last = torch.searchsorted(target.rows, torch.stack((rows[0], rows[-1] + 1))).tolist()
            if first == last:
                continue
            place = torch.searchsorted(rows, target.rows[first:last])
            mean = (probs if len(place) == len(rows) else probs[:, :, place.to(probs.device)]).mean(1)
            mean = resize_keys(mean, self._grid, target.grid) if target.grid != self._grid else mean
            for sink in target.streamed:
                sink.take(frame, slice(first, last), mean)
            if target.waiting:
                found = target.found[frame]
                if found is None:
                    found = mean.new_empty(mean.shape[0], len(target.rows), mean.shape[-1])
                    target.found[frame] = found
                found[:, first:last] = mean

    def finish(self) -> None:
        """Call this when all rows were added; the sinks get their whole maps and are finished."""
        for target in self._targets.values():
            for sink in target.streamed:
                sink.finish(None)
            if target.waiting:
                whole = target.whole()
                for sink in target.waiting:
                    sink.finish(whole)


def by_frame(values: Tensor, frames: int) -> Tensor:
    """[B, frames * N, ...] -> [B * frames, N, ...]"""
    return values.unflatten(1, (frames, -1)).flatten(0, 1)


def by_latent_frame(values: Tensor, frames: int, patch: int, length: int) -> Tensor:
    """[B * frames, ...] for frames of tokens -> [B * length, ...] for latent frames, ``patch`` of them per token."""
    if patch <= 1:
        return values
    return values.unflatten(0, (-1, frames)).repeat_interleave(patch, 1)[:, :length].flatten(0, 1)
