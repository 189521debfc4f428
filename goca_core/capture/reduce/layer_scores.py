"""Use a layer's self-attention: score it against the reference affinity, and add it to a running mean.

A map of 64x64 tokens takes 64 MB in full precision. Only a sum of products with the reference and the running mean are
needed from it, and both are computed a few rows at a time as the rows come in (``self_maps.Sink``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layers import LayerScore, resize_keys, resize_self_map
from ...tensors import Grid, finite, nearest_index
from .spec import ReductionSpec

# Rows of a stored map that are compared with the reference at a time.
_ROWS = 512


class KeptRows:
    """Maps [B * frames, M, M] that are assembled from rows, in the rows' precision or in ``dtype``."""

    def __init__(self, frames: int, dtype: torch.dtype | None = None) -> None:
        self._frames, self._dtype = frames, dtype
        self._maps: Tensor | None = None

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        self.at(frame, rows, part)[:] = part

    def at(self, frame: int, rows: slice, part: Tensor) -> Tensor:
        """The view of the maps into which rows like ``part`` are written."""
        if self._maps is None:
            batch, _, tokens = part.shape
            self._maps = part.new_empty(batch, self._frames, tokens, tokens, dtype=self._dtype)
        return self._maps[:, frame, rows]

    def result(self) -> Tensor:
        if self._maps is None:
            raise ValueError("No rows were taken; add the rows of an attention call before asking for the map.")
        return self._maps.flatten(0, 1)


class Agreement:
    """Agreement of one layer with the reference P [B * frames, M, M], computed from rows, not normalised.

    See ``layers.LayerScore``.
    """

    def __init__(self, affinity: Tensor, frames: int, methods: Sequence[str]) -> None:
        self._affinity = affinity.unflatten(0, (-1, frames))
        self._scores = {method: [LayerScore(method) for _ in range(frames)] for method in methods}

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        reference = self._affinity[:, frame, rows]
        for scores in self._scores.values():
            scores[frame].add(reference, part)

    def result(self) -> dict[str, Tensor]:
        """Method -> [B * frames]."""
        return {
            method: torch.stack([score.result() for score in scores], 1).flatten()
            for method, scores in self._scores.items()
        }


class LayerScores:
    """The scores of all layers of a call. The maps of layers that run before the reference layer are stored until then.

    ``scores``: layer -> method -> [B * frames], on the CPU.
    """

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, Tensor]] = {}
        self.reference: Reference | None = None
        self._waiting: list[tuple[str, Tensor, Grid]] = []

    def set_reference(self, spec: ReductionSpec, affinity: Tensor) -> None:
        """Set the reference affinity [B * frames, M, M] of this call, and score the layers that wait for it."""
        self.reference = Reference(affinity, spec.reference_grid)
        for name, maps, grid in self._waiting:
            self.score(spec, name, maps.to(affinity.device), grid)
        self._waiting.clear()

    def score(self, spec: ReductionSpec, name: str, maps: Tensor, grid: Grid) -> None:
        """Score the whole maps of a layer, or store them until the reference is known."""
        if self.reference is None:
            held = maps.to("cpu", torch.float16) if spec.is_large(grid) else maps
            self._waiting.append((name, held, grid))
            return
        self.scores[name] = {method: self.reference.score(maps, grid, method).cpu() for method in spec.scored}


class ScoreSink:
    """Scores one layer while its rows come in, or stores them if the reference is not known yet."""

    def __init__(self, scores: LayerScores, spec: ReductionSpec, name: str) -> None:
        self.target = spec.reference_grid
        self._scores, self._spec, self._name = scores, spec, name
        known = scores.reference
        self._agreement = None if known is None else Agreement(known.affinity, spec.frames, spec.scored)
        self._kept = KeptRows(spec.frames, spec.reference_dtype)

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        (self._kept if self._agreement is None else self._agreement).take(frame, rows, part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is None and self._agreement is not None:
            self._scores.scores[self._name] = {name: score.cpu() for name, score in self._agreement.result().items()}
        else:
            maps, grid = (self._kept.result(), self.target) if whole is None else whole
            self._scores.score(self._spec, self._name, maps, grid)


class MapSink(KeptRows):
    """Collects the self-attention of a layer on the grid ``target``."""

    def __init__(self, target: Grid, frames: int) -> None:
        super().__init__(frames)
        self.target = target

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is not None:
            maps = resize_self_map(*whole, self.target).unflatten(0, (-1, self._frames))
            for frame in range(self._frames):
                self.take(frame, slice(None), maps[:, frame])


class MeanSink(MapSink):
    """The running mean over several layers; ``finish`` is called after each of them."""

    def __init__(self, target: Grid, frames: int) -> None:
        super().__init__(target, frames)
        self._layers = 0

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        if self._layers:
            self.at(frame, rows, part).lerp_(finite(part), 1 / (self._layers + 1))
        else:
            super().take(frame, rows, finite(part))

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        super().finish(whole)
        self._layers += 1


class Reference:
    """The reference affinity P of one forward pass, and the agreement of layers with it."""

    def __init__(self, affinity: Tensor, grid: Grid) -> None:
        self.affinity, self.grid = affinity, grid
        self._folded: dict[Grid, Tensor] = {grid: affinity}

    def score(self, layer: Tensor, grid: Grid, method: str) -> Tensor:
        """Agreement [B] of a layer's self-attention [B, M, M] on ``grid``, not normalised (see ``layers.LayerScore``).

        In float32, a few rows at a time, because both may be stored in half precision.
        """
        if method == "dot-product similarity":
            # The score is linear in the layer's map, so P is brought to the layer's grid once instead of resizing every
            # layer to P's grid: a sixteenth of the work for a layer with half the side.
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
