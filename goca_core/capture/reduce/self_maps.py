"""Mean self-attention over heads, collected while the softmax of a call is computed: on several grids, frame by frame.

The tokens of a video are one sequence, frame after frame, and attend to each other. From the softmax over all of them only
each frame's attention to itself is kept, like the image's attention to itself in joint attention: a matrix over all frames
would be far too large, and it is only used frame by frame. An image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...tensors import CPUS, Grid, finite, index_on, nearest_index, resize_bilinear
from .call import AttentionCall

# Elements of a map that an accelerator completes before it is resized and used: 64 MB in float32.
_GATHERED = 1 << 24


class Sink(Protocol):
    """Receives the self-attention of a layer on the grid ``target``, to score it, average it or store it."""

    target: Grid

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        """Take ``part``, the rows ``rows`` (ascending) of maps [M, M]: [B, n, M] of one frame, or [B, frames, n, M]."""

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        """The layer is complete. ``whole``: its maps [B * frames, M, M] and their grid, if no rows were given before."""


@lru_cache(maxsize=64)
def _rows(grid: Grid, layer: Grid) -> tuple[Tensor, Tensor, bool, list[int]]:
    """The query rows of a layer that a grid needs, the row of those for each of its rows, and whether these ascend.

    Then, for each row of the layer and the end, how many of the needed rows come before it.
    """
    index = nearest_index(layer, grid) if grid != layer else torch.arange(layer[0] * layer[1])
    rows, order = torch.unique(index, return_inverse=True)
    starts = torch.searchsorted(rows, torch.arange(layer[0] * layer[1] + 1)).tolist()
    return rows, order, bool((order[1:] > order[:-1]).all()), starts


class _Target:
    """One target grid: its query rows, ascending, and the row of those for each row of its map."""

    def __init__(self, grid: Grid, layer: Grid) -> None:
        self.grid = grid
        self.rows, self.order, self.ascending, self._starts = _rows(grid, layer)
        self.streamed: list[Sink] = []
        self.waiting: list[Sink] = []
        self.found: Tensor | None = None
        self.gathered: Tensor | None = None

    def place(self, numbers: Tensor) -> tuple[int, int, Tensor | None]:
        """Which of its rows are among the rows ``numbers``, from and to, and where these are; None if they are all of them."""
        first, last = self._starts[int(numbers[0])], self._starts[int(numbers[-1]) + 1]
        if last - first == len(numbers):
            return first, last, None
        return first, last, torch.searchsorted(numbers, self.rows[first:last])

    def whole(self) -> tuple[Tensor, Grid]:
        """The maps [B * frames, M, M], ordered by video and then frame, and their grid."""
        assert self.found is not None
        maps = self.found.flatten(0, 1)
        return (maps if self.ascending else maps[:, index_on(maps.device, self.order)]), self.grid


def _own(target: Grid, grid: Grid) -> Grid:
    """The grid on which a layer's map is collected for a target."""
    return target if target[0] * target[1] < grid[0] * grid[1] else grid


@dataclass(frozen=True)
class _Needed:
    """Which query rows of a layer are needed.

    ``of_frame``: those of each frame, ascending, ``of_all``: the same for all frames as one sequence; None for all rows.
    ``pick``: picks those of a frame from [B, H, N, ...] as a view [B, H, h, w, ...], if they are every n-th of each axis.
    """

    of_frame: Tensor | None
    of_all: Tensor | None
    pick: Callable[[Tensor], Tensor] | None


@lru_cache(maxsize=64)
def _needed(grid: Grid, targets: tuple[Grid, ...], frames: int) -> _Needed:
    (target, *more), count = {_own(target, grid): None for target in targets}, grid[0] * grid[1]
    rows = torch.unique(torch.cat([_rows(each, grid)[0] for each in (target, *more)]))
    if len(rows) == count:
        return _Needed(None, None, None)
    pick = None
    if not more and not (grid[0] % target[0] or grid[1] % target[1]):
        down, across = grid[0] // target[0], grid[1] // target[1]

        def pick(x: Tensor) -> Tensor:
            return x.unflatten(2, grid)[:, :, ::down, ::across]

    return _Needed(rows, torch.cat([rows + frame * count for frame in range(frames)]), pick)


def picked_rows(call: AttentionCall, grid: Grid, targets: tuple[Grid, ...], frames: int) -> AttentionCall:
    """The call with only the queries that maps on ``targets`` need, of a layer on ``grid``; without denominators.

    Its queries may have two axes for the image, where these are a view.
    """
    needed = _needed(grid, targets, frames)
    if needed.of_all is None:
        return call
    index = index_on(call.q.device, needed.of_all)
    mask = call.mask
    if mask is None and frames == 1 and needed.pick is not None:
        return replace(call, q=needed.pick(call.q))
    q = call.q[:, :, index]
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[..., index, :]
    return replace(call, q=q, mask=mask)


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
            own = _own(sink.target, grid)
            if own not in self._targets:
                self._targets[own] = _Target(own, grid)
            target = self._targets[own]
            (target.streamed if own == sink.target and target.ascending else target.waiting).append(sink)
        for target in self._targets.values():
            if target.waiting:
                target.waiting, target.streamed = [*target.streamed, *target.waiting], []
        needed = _needed(grid, tuple(sink.target for sink in sinks), frames)
        self._starts = torch.arange(frames + 1) * self._count
        self.rows_of_frame, self.rows, self.pick = needed.of_frame, needed.of_all, needed.pick

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """Take the probabilities of some query rows: [B, H, rows, keys], or [B * frames, H, rows, keys of a frame].

        ``numbers``: the numbers of the rows, ascending, on the CPU, in the sequence of all frames or in each frame.
        """
        if probs.shape[-1] == self._count:
            self._add(slice(None), numbers, probs)
            return
        for frame, (first, last) in enumerate(pairwise(torch.searchsorted(numbers, self._starts).tolist())):
            if first < last:
                start = frame * self._count
                own = probs[:, :, first:last, start : start + self._count]
                self._add(slice(frame, frame + 1), numbers[first:last] - start, own)

    def _add(self, frames: slice, rows: Tensor, probs: Tensor) -> None:
        for target in self._targets.values():
            first, last, place = target.place(rows)
            if first == last:
                continue
            own = probs if place is None else probs[:, :, index_on(probs.device, place)]
            dtype = torch.promote_types(own.dtype, torch.float32)
            if probs.device.type in CPUS:
                self._pass_on(target, frames, first, finite(own.mean(1)))
            elif len(own) * len(target.rows) * own.shape[-1] > _GATHERED:
                self._pass_on(target, frames, first, own.mean(1, dtype=dtype))
            else:
                # An accelerator starts fewer kernels if all rows are passed on at once. If something is not finite here, it
                # is so in the maps of the words as well, where it is reported.
                if target.gathered is None:
                    target.gathered = own.new_empty(len(own), len(target.rows), own.shape[-1], dtype=dtype)
                torch.mean(own, 1, dtype=dtype, out=target.gathered[:, first:last])
                if last == len(target.rows):
                    gathered, target.gathered = target.gathered, None
                    self._pass_on(target, frames, 0, gathered)

    def _pass_on(self, target: _Target, frames: slice, first: int, mean: Tensor) -> None:
        # Keys bilinear, as in `layers.resize_keys`; the queries are the nearest already.
        mean = resize_bilinear(mean.unflatten(-1, self._grid), target.grid).flatten(2)
        count = len(range(self.frames)[frames])
        part, rows = mean.unflatten(0, (-1, count)), slice(first, first + mean.shape[1])
        for sink in target.streamed:
            sink.take(frames, rows, part)
        if target.waiting:
            if target.found is None:
                target.found = mean.new_empty(part.shape[0], self.frames, len(target.rows), mean.shape[-1])
            target.found[:, frames, rows] = part

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
