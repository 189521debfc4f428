"""One attention call to one small map, without ever holding heads x pixels x tokens.

Everything is computed in float32 from the queries and keys the kernel was given, over blocks of query rows, so the
result does not depend on the attention kernel and the memory needed does not grow with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...layers import resize_keys
from ...tensors import Grid, nearest_index

# Size of the largest temporary, in elements: 2^21 float32 are 8 MB, about what a core's cache still serves well. An
# accelerator rather wants few large steps.
_ELEMENTS = 1 << 21
_ELEMENTS_ACCELERATOR = 1 << 23
_NAMES = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")


@dataclass(frozen=True)
class AttentionCall:
    """An attention call with its heads split: q [B, H, Nq, d], k and v [B, H, Nk, d].

    ``mask``: None, or four axes that broadcast to [B, H, Nq, Nk]; boolean (True = keep) or added to the logits.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float

    def rows(self, rows: slice) -> AttentionCall:
        """The same call for some samples of its batch."""
        mask = self.mask
        if mask is not None and mask.shape[0] == self.q.shape[0]:
            mask = mask[rows]
        return AttentionCall(self.q[rows], self.k[rows], self.v[rows], mask, self.scale)

    def queries(self, queries: slice) -> AttentionCall:
        """The same call for some of its queries."""
        mask = self.mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        return AttentionCall(self.q[:, :, queries], self.k, self.v, mask, self.scale)

    def keys(self, keys: slice) -> AttentionCall:
        """The same call with some of its keys only; its softmax is that of the whole call only with a ``total``."""
        mask = self.mask
        if mask is not None and mask.shape[-1] > 1:
            mask = mask[..., keys]
        return AttentionCall(self.q, self.k[:, :, keys], self.v[:, :, keys], mask, self.scale)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of the host's attention functions, whichever way they were passed."""
    given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
    q, k, v, heads = given["q"], given["k"], given["v"], given["heads"]
    if not given.get("skip_reshape"):
        # Some callers (SD3) have the heads of one of them on an axis of their own already.
        q, k, v = (x.flatten(2) for x in (q, k, v))
        q = split_heads(q, heads)
        # Grouped-query attention shares each key head among several query heads.
        width = q.shape[-1]
        k, v = (split_heads(x, x.shape[-1] // width) for x in (k, v))
    if k.shape[1] != q.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scale, mask = given.get("scale"), given.get("mask")
    if mask is not None:
        mask = _four_axes(mask, q.shape[0], q.shape[2])
    return AttentionCall(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)


def _four_axes(mask: Tensor, batch: int, queries: int) -> Tensor:
    """A mask of any of the host's shapes as [B or 1, H or 1, Nq or 1, Nk]."""
    if mask.ndim == 2:
        return mask[:, None, None] if mask.shape[0] == batch != queries else mask[None, None]
    return mask[None, None, None] if mask.ndim == 1 else mask[:, None] if mask.ndim == 3 else mask


def probabilities(
    call: AttentionCall, index: Tensor | None = None, total: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of a call, block by block: (query rows, [B, H, rows, Nk] in float32 or better).

    ``index``: only these query rows, in this order (the slices then count within it). ``total``: the logarithm of the
    softmax's denominators [B, H, Nq], if it is known; it may come from more keys than the call has.
    """
    q = call.q if index is None else call.q[:, :, index]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = call.k.to(exact).transpose(-1, -2)
    mask = call.mask
    if index is not None:
        mask = mask[..., index, :] if mask is not None and mask.shape[-2] > 1 else mask
        total = total[:, :, index] if total is not None else None
    batch, heads, count = q.shape[:3]
    elements = _ELEMENTS if q.device.type == "cpu" else _ELEMENTS_ACCELERATOR
    step = max(1, elements // max(1, batch * heads * keys.shape[-1]))
    for start in range(0, count, step):
        stop = min(count, start + step)
        logits = (q[:, :, start:stop].to(exact) * call.scale) @ keys
        if mask is not None:
            part = mask if mask.shape[-2] == 1 else mask[..., start:stop, :]
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part.to(exact)
        if total is None:
            yield slice(start, stop), torch.softmax(logits, -1)
        else:
            yield slice(start, stop), logits.sub_(total[:, :, start:stop, None]).exp_()


@dataclass(frozen=True)
class TokenColumns:
    """Which text columns to keep: ``matrix`` [keys, columns] adds up repeats of the prompt and the tokens not kept."""

    matrix: Tensor

    @staticmethod
    def make(keys: int, length: int, positions: tuple[int, ...], rest: bool, device: torch.device) -> TokenColumns:
        """``length``: tokens of the conditioning. The host repeats a short one so that it can be batched with a longer
        one; the copies share the attention mass and are added up again."""
        own = torch.arange(keys, device=device) % length
        place = torch.full((length,), len(positions) if rest else -1, device=device)
        place[torch.tensor(positions, device=device, dtype=torch.long)] = torch.arange(len(positions), device=device)
        columns = torch.arange(len(positions) + rest, device=device)
        return TokenColumns((place[own][:, None] == columns).float())


class TextMaps:
    """Text attention after head-wise aggregation, gathered block by block: a map [B, N, columns] for each head method.

    ``weights``: head method -> [B, N, H].
    """

    def __init__(self, weights: Mapping[str, Tensor], columns: TokenColumns) -> None:
        self._weights, self._columns = weights, columns
        self._blocks: dict[str, list[Tensor]] = {name: [] for name in weights}

    def add(self, rows: slice, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, text keys] of the next query rows."""
        matrix = self._columns.matrix.to(probs.dtype)
        for name, weight in self._weights.items():
            mixed = torch.einsum("bhnt,bnh->bnt", probs, weight[:, rows].to(probs.dtype))
            self._blocks[name].append(mixed @ matrix)

    def result(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts, 1) for name, parts in self._blocks.items()}


TakeRows = Callable[[slice, Tensor], None]
"""Takes rows [B, n, M] of a map [B, M, M]: which they are, and the rows."""


class SelfMaps:
    """Head-mean self-attention, gathered block by block for several grids at once.

    For each of ``targets`` a map [B, M, M]: on the layer's own ``grid``, or on the target if that has fewer tokens.
    For a coarser target the queries are the nearest and the keys resized bilinearly, as the method does anyway before
    comparing layers; so no map larger than the target's is ever held. Of a target in ``takers`` none is: its rows are
    passed on as they come in, unless the whole map is needed, for another target or because the rows have another order.
    """

    def __init__(self, grid: Grid, targets: Sequence[Grid], takers: Mapping[Grid, TakeRows] | None = None) -> None:
        self._grid = grid
        count = grid[0] * grid[1]
        reached = {target: target if target[0] * target[1] < count else grid for target in targets}
        self._targets = list(dict.fromkeys(reached.values()))
        # The rows that each target needs, ascending, and which of them each of its own rows is.
        self._rows: list[Tensor] = []
        self._order: list[Tensor] = []
        for target in self._targets:
            index = nearest_index(grid, target) if target != grid else torch.arange(count)
            rows, order = torch.unique(index, return_inverse=True)
            self._rows.append(rows)
            self._order.append(order)
        self._found: list[Tensor | None] = [None] * len(self._targets)
        whole = {near for target, near in reached.items() if near != target}
        self._takers = {
            number: takers[target]
            for number, target in enumerate(self._targets)
            if takers and target in takers and target not in whole and _ascending(self._order[number])
        }
        needed = torch.unique(torch.cat(self._rows))
        self.index: Tensor | None = None if len(needed) == count else needed
        """The query rows that are needed, ascending; None for all of them."""

    def add(self, rows: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, N] of some query rows, whose numbers are ``rows`` (ascending, on the CPU)."""
        for number, (target, wanted) in enumerate(zip(self._targets, self._rows, strict=True)):
            first, last = torch.searchsorted(wanted, torch.stack((rows[0], rows[-1] + 1))).tolist()
            if first == last:
                continue
            place = torch.searchsorted(rows, wanted[first:last])
            part = probs if len(place) == len(rows) else probs[:, :, place.to(probs.device)]
            mean = part.mean(1)
            mean = resize_keys(mean, self._grid, target) if target != self._grid else mean
            if number in self._takers:
                self._takers[number](slice(first, last), mean)
                continue
            found = self._found[number]
            if found is None:
                found = self._found[number] = mean.new_empty(mean.shape[0], len(wanted), mean.shape[-1])
            found[:, first:last] = mean

    def fill(self, call: AttentionCall, total: Tensor | None = None) -> None:
        """Take all rows that are needed of a call, in one pass; ``total``: see ``probabilities``."""
        numbers = torch.arange(self._grid[0] * self._grid[1]) if self.index is None else self.index
        index = None if self.index is None else self.index.to(call.q.device)
        for rows, probs in probabilities(call, index, total):
            self.add(numbers[rows], probs)

    def result(self, target: Grid) -> tuple[Tensor, Grid] | None:
        """The map for a target, and its grid; None where a taker got it."""
        target = target if target in self._targets else self._grid
        number = self._targets.index(target)
        if number in self._takers:
            return None
        found, order = self._found[number], self._order[number]
        assert found is not None
        return (found if _ascending(order) else found[:, order.to(found.device)]), target


def _ascending(order: Tensor) -> bool:
    return bool((order[1:] > order[:-1]).all())


def cross_maps(
    call: AttentionCall, weights: Mapping[str, Tensor], columns: TokenColumns, total: Tensor | None = None
) -> dict[str, Tensor]:
    """Cross-attention after head-wise aggregation: for each head method's weights [B, N, H] a map [B, N, columns]."""
    maps = TextMaps(weights, columns)
    for rows, probs in probabilities(call, total=total):
        maps.add(rows, probs)
    return maps.result()
