"""Self-attention of a film: what the tokens of each frame see of their own frame.

The tokens of all frames are one sequence, frame by frame, and attend to each other. Of that softmax over everything the
part of each frame on itself is kept as it is, as in joint attention the part of the picture on itself: a matrix over all
frames would be far too large, and all that is made of it is done frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ...tensors import Grid
from .call import AttentionCall, SelfMaps, probabilities
from .layer_scores import Take


class FilmMaps:
    """``SelfMaps`` of ``frames`` frames, each on ``grid``. A picture is a film of one."""

    def __init__(
        self, grid: Grid, targets: Sequence[Grid], frames: int = 1, takers: Mapping[Grid, Take] | None = None
    ) -> None:
        self._maps = [
            SelfMaps(grid, targets, {target: partial(take, frame) for target, take in (takers or {}).items()})
            for frame in range(frames)
        ]
        self.frames = frames
        self._count = grid[0] * grid[1]
        rows = self._maps[0].index
        self.index = None if rows is None else torch.cat([rows + frame * self._count for frame in range(frames)])
        """The query rows that are needed, ascending; None for all of them."""

    def add(self, rows: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, all frames] of some query rows, whose numbers are ``rows`` (ascending)."""
        starts = torch.arange(len(self._maps) + 1) * self._count
        for frame, (first, last) in enumerate(pairwise(torch.searchsorted(rows, starts).tolist())):
            if first < last:
                own = self._part(frame)
                self._maps[frame].add(rows[first:last] - own.start, probs[:, :, first:last, own])

    def fill(self, call: AttentionCall, total: Tensor) -> None:
        """Compute all at once from a call whose queries and keys are the film's; ``total``: see ``probabilities``."""
        for frame, maps in enumerate(self._maps):
            own = self._part(frame)
            maps.fill(call.queries(own).keys(own), total[:, :, own])

    def _part(self, frame: int) -> slice:
        return slice(frame * self._count, (frame + 1) * self._count)

    def result(self, target: Grid) -> tuple[Tensor, Grid] | None:
        """The maps [B * frames, M, M] for a target, film by film, and their grid; None where a taker got them."""
        found = [own for maps in self._maps if (own := maps.result(target)) is not None]
        return (torch.stack([maps for maps, _ in found], 1).flatten(0, 1), found[0][1]) if found else None


def by_frame(values: Tensor, frames: int) -> Tensor:
    """[B, frames * N, ...] -> [B * frames, N, ...]"""
    return values.unflatten(1, (frames, -1)).flatten(0, 1)


def by_latent_frame(values: Tensor, frames: int, patch: int, length: int) -> Tensor:
    """[B * frames, ...] of frames of tokens -> [B * length, ...], where each spans ``patch`` frames of the latent."""
    if patch <= 1:
        return values
    return values.unflatten(0, (-1, frames)).repeat_interleave(patch, 1)[:, :length].flatten(0, 1)


def film_self_maps(call: AttentionCall, film: slice, maps: FilmMaps, total: Tensor | None = None) -> None:
    """Fill ``maps`` from a call whose queries are the film's and whose keys are ``film`` among others."""
    if total is not None:
        maps.fill(call.keys(film), total)
        return
    numbers = torch.arange(call.q.shape[2]) if maps.index is None else maps.index
    for rows, probs in probabilities(call, None if maps.index is None else maps.index.to(call.q.device)):
        maps.add(numbers[rows], probs[..., film])
