"""Use a layer's self-attention: score it against the reference affinity, and add it to a running mean.

A map of 64x64 tokens takes 64 MB in full precision. Only a sum of products with the reference and the running mean are
needed from it, and both are computed a few rows at a time as the rows come in (``self_maps.Sink``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from ...layers import LayerScore, overlap, resize_keys, resize_self_map
from ...tensors import CPUS, Grid, bilinear_matrix, finite, nearest_index
from .spec import ReductionSpec

S = TypeVar("S", bound="_OfSeveral")
# Rows of a stored map that are compared with the reference at a time.
_ROWS = 512
# Elements of maps that an accelerator weights together, because it starts a dozen small kernels for them: 64 MB in float32.
_TOGETHER = 1 << 24


class KeptRows:
    """Maps [B * frames, M, M] that are assembled from rows, in the rows' precision or in ``dtype``."""

    def __init__(self, frames: int, dtype: torch.dtype | None = None) -> None:
        self._frames, self._dtype = frames, dtype
        self._maps: Tensor | None = None

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        self.at(frame, rows, part)[:] = part

    def at(self, frame: int | slice, rows: slice, part: Tensor) -> Tensor:
        """The view of the maps into which rows like ``part`` are written."""
        if self._maps is None:
            batch, tokens = part.shape[0], part.shape[-1]
            self._maps = part.new_empty(batch, self._frames, tokens, tokens, dtype=self._dtype)
        return self._maps[:, frame, rows]

    def result(self) -> Tensor:
        if self._maps is None:
            raise ValueError("No rows were taken; add the rows of an attention call before asking for the map.")
        return self._maps.flatten(0, 1)


class Agreement:
    """Agreement of layers with the reference P [B * frames, M, M], computed from rows, not normalised.

    Rows of several layers come one layer after the other, [layers * B, ...]. See ``layers.LayerScore``.
    """

    def __init__(self, affinity: Tensor, frames: int, methods: Sequence[str]) -> None:
        self._affinity, self._methods = affinity.unflatten(0, (-1, frames)), methods
        # Rows come for single frames, or for all of them.
        self._scores: dict[tuple[int, int], dict[str, LayerScore]] = {}

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        frames = slice(frame, frame + 1) if isinstance(frame, int) else frame
        reference = self._affinity[:, frames, rows]
        start, stop, _ = frames.indices(self._affinity.shape[1])
        scores = self._scores.setdefault((start, stop), {method: LayerScore(method) for method in self._methods})
        for score in scores.values():
            score.accumulate(reference.flatten(0, 1).to(part.dtype), part.flatten(0, -3))

    def result(self) -> dict[str, Tensor]:
        """Method -> [layers * B * frames]."""
        ordered = sorted(self._scores)
        found = [(stop - start, self._scores[start, stop]) for start, stop in ordered]
        return {
            method: _joined([scores[method].result().unflatten(0, (-1, frames)) for frames, scores in found])
            for method in self._methods
        }


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Numbers of some frames each, [rows, frames], as those of all frames, [rows * frames]."""
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)).flatten()


class LayerScores:
    """The scores of all layers of a call. The maps of layers that run before the reference layer are stored until then.

    ``scores``: layer -> method -> [B * frames].
    """

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, Tensor]] = {}
        self.reference: Reference | None = None
        self._waiting: list[tuple[tuple[str, ...], Tensor, Grid]] = []

    def set_reference(self, spec: ReductionSpec, affinity: Tensor) -> None:
        """Set the reference affinity [B * frames, M, M] of this call, and score the layers that wait for it."""
        self.reference = Reference(affinity, spec.reference_grid)
        for names, maps, grid in self._waiting:
            self.score(spec, names, maps, grid)
        self._waiting.clear()

    def score(self, spec: ReductionSpec, names: tuple[str, ...], maps: Tensor, grid: Grid) -> None:
        """Score the whole maps of layers [layers * B * frames, M, M], or store them until the reference is known."""
        if self.reference is None:
            self._waiting.append((names, maps.to(spec.held_dtype(grid, maps)), grid))
            return
        self.add(names, {method: self.reference.score(maps, grid, method) for method in spec.scored})

    def add(self, names: tuple[str, ...], found: dict[str, Tensor]) -> None:
        """Add scores of layers: method -> [layers * B * frames]."""
        for number, name in enumerate(names):
            self.scores[name] = {method: value.chunk(len(names))[number] for method, value in found.items()}


class ScoreSink:
    """Scores layers while their rows come in, or stores them if the reference is not known yet."""

    def __init__(self, scores: LayerScores, spec: ReductionSpec, names: tuple[str, ...]) -> None:
        self.target = spec.reference_grid
        self._scores, self._spec, self._names = scores, spec, names
        known = scores.reference
        self._agreement = None if known is None else Agreement(known.affinity, spec.frames, spec.scored)
        self._kept: KeptRows | None = None

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        if self._agreement is not None:
            self._agreement.take(frame, rows, part)
            return
        if self._kept is None:
            self._kept = KeptRows(self._spec.frames, self._spec.held_dtype(self.target, part))
        self._kept.take(frame, rows, part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is None and self._agreement is not None:
            self._scores.add(self._names, self._agreement.result())
        else:
            if whole is None:
                assert self._kept is not None
                whole = self._kept.result(), self.target
            self._scores.score(self._spec, self._names, *whole)


class MapSink(KeptRows):
    """Collects the self-attention of a layer on the grid ``target``."""

    def __init__(self, target: Grid, frames: int) -> None:
        super().__init__(frames)
        self.target = target

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is not None:
            maps = resize_self_map(*whole, self.target).unflatten(0, (-1, self._frames))
            self.take(slice(None), slice(None), maps)


class PartsSink(MapSink):
    """Puts the maps of several layers into ``found``, by name."""

    def __init__(self, target: Grid, frames: int, names: tuple[str, ...], found: dict[str, Tensor]) -> None:
        super().__init__(target, frames)
        self._names, self._found = names, found

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        super().finish(whole)
        self._found.update(zip(self._names, self.result().chunk(len(self._names)), strict=True))


class _OfSeveral:
    """What is told how many layers come at once."""

    _coming = 1

    def of(self: S, layers: int) -> S:
        """Itself, told how many layers come at once next: their rows are [layers * B, ...]."""
        self._coming = layers
        return self


class MeanSink(_OfSeveral, MapSink):
    """The running mean over layers; ``finish`` is called after each of them, or after several that come at once."""

    def __init__(self, target: Grid, frames: int) -> None:
        super().__init__(target, frames)
        self._layers = 0

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        if part.device.type in CPUS:  # elsewhere it is reported, see SelfMaps
            part = finite(part)
        if self._coming > 1:
            part = part.unflatten(0, (self._coming, -1)).mean(0)
        if self._layers:
            self.at(frame, rows, part).lerp_(part, self._coming / (self._layers + self._coming))
        else:
            super().take(frame, rows, part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        super().finish(whole)
        self._layers += self._coming


class PerplexitySink(_OfSeveral):
    """The mean over layers of self-attention whose rows sum to one, weighted by the square of each layer's perplexity.

    Perplexity is the exponential of the mean entropy of the rows, in tokens: the number of places that a pixel attends to.
    Layers that attend only to close neighbours or to single tokens say little about objects, and so get little weight. The
    weight of a layer is known when it is complete, so its map is held until then, on an accelerator with a few others.
    ``finish`` is called after each layer, or after several that come at once. Rows that sum to less than one, because text
    has the rest, count as if they did not.
    """

    def __init__(self, target: Grid, frames: int) -> None:
        self.target, self._frames = target, frames
        self._kept: KeptRows | None = None
        self._maps: Tensor | None = None
        self._complete: list[Tensor] = []
        self._total: Tensor | None = None
        self._weights: Tensor | None = None

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        if not isinstance(frame, int) and part.shape[1:] == (self._frames, part.shape[-1], part.shape[-1]):
            self._maps = part.flatten(0, 1)  # everything at once, as on an accelerator, need not be copied
            return
        self._kept = self._kept or KeptRows(self._frames)
        self._kept.take(frame, rows, part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is not None:
            maps = resize_self_map(*whole, self.target)
        elif self._maps is not None:
            maps = self._maps
        else:
            assert self._kept is not None
            maps = self._kept.result()
        self._kept = self._maps = None
        self._complete += maps.unflatten(0, (self._coming, -1)).unbind(0)
        if maps.device.type in CPUS or sum(each.numel() for each in self._complete) >= _TOGETHER:
            self._use()

    def _use(self) -> None:
        """Weight the layers that are complete, and add them."""
        layers = len(self._complete)
        rows = torch.cat(self._complete)  # a copy, even of one
        self._complete = []
        rows /= rows.sum(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        weights = (torch.special.entr(rows).sum((1, 2)) * (2 / rows.shape[-1])).exp().unflatten(0, (layers, -1))
        several = weights.T[:, None], rows.flatten(1).unflatten(0, (layers, -1)).transpose(0, 1)
        if self._total is None or self._weights is None:
            self._total, self._weights = torch.bmm(*several), weights.sum(0)
        else:
            self._total.baddbmm_(*several)
            self._weights += weights.sum(0)

    def result(self) -> Tensor:
        """The mean, [B * frames, M, M]. Raises ValueError if no layer was finished."""
        if self._complete:
            self._use()
        if self._total is None or self._weights is None:
            raise ValueError("No layer was finished; add the rows of an attention call before asking for the mean.")
        return (self._total / self._weights[:, None, None]).unflatten(-1, (-1, math.prod(self.target)))[:, 0]


class Reference:
    """The reference affinity P of one forward pass, and the agreement of layers with it."""

    def __init__(self, affinity: Tensor, grid: Grid) -> None:
        self.affinity, self.grid = affinity, grid
        self._folded: dict[Grid, Tensor] = {grid: affinity}
        # Rows that are compared at a time: few on a CPU, where the temporaries are large; all on an accelerator.
        self._rows = _ROWS if affinity.device.type in CPUS else affinity.shape[-1]

    def score(self, layer: Tensor, grid: Grid, method: str) -> Tensor:
        """Agreement [B] of a layer's self-attention [B, M, M] on ``grid``, not normalised (see ``layers.LayerScore``).

        In float32, because both may be stored in half precision. ``layer`` may hold several layers, one after the other.
        """
        if method == "dot-product similarity":
            # The score is linear in the layer's map, so P is brought to the layer's grid once instead of resizing every
            # layer to P's grid: a sixteenth of the work for a layer with half the side.
            pairs = zip(self._fold(grid).split(self._rows, 1), layer.split(self._rows, 1), strict=True)
            parts = [overlap(ours.float(), theirs.float()) for ours, theirs in pairs]
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        score = LayerScore(method)
        index = nearest_index(grid, self.grid, layer.device)
        for start in range(0, len(index), self._rows):
            rows = resize_keys(layer[:, index[start : start + self._rows]].float(), grid, self.grid)
            ours = self.affinity[:, start : start + self._rows]
            score.add(ours if len(ours) == len(rows) else ours.repeat(len(rows) // len(ours), 1, 1), rows)
        return score.result()

    def _fold(self, grid: Grid) -> Tensor:
        """P on the grid of a layer: its rows added up where they have the same nearest row, its keys resized back.

        Everything is a matrix product. An indexed sum would add in another order each time on an accelerator.
        """
        if grid not in self._folded:
            down, across = (_nearest(a, b, self.affinity.device) for a, b in zip(grid, self.grid, strict=True))
            height, width = (bilinear_matrix(a, b, self.affinity.device) for a, b in zip(grid, self.grid, strict=True))
            columns = self.affinity.unflatten(-1, self.grid)  # [B, N, h, w]
            found = []
            for some in columns.split(self._rows, 1):
                keys = torch.einsum("bnyx,yi,xj->bnij", some.float(), height, width)
                found.append(keys.flatten(2))
            rows = torch.cat(found, 1).unflatten(1, self.grid)  # [B, h, w, M]
            self._folded[grid] = torch.einsum("byxm,yi,xj->bijm", rows, down, across).flatten(1, 2)
        return self._folded[grid]


@lru_cache(maxsize=64)
def _nearest(source: int, target: int, device: torch.device) -> Tensor:
    """The matrix [target, source] that picks the nearest element of each, along one axis (see `tensors.nearest_index`)."""
    with torch.inference_mode(False):  # it is used in other runs, which may not be in inference mode
        nearest = nearest_index((source, 1), (target, 1), device)
        return (nearest[:, None] == torch.arange(source, device=device)).float()
