"""Compute the softmax of an attention call block by block, without holding heads x pixels x tokens in memory.

Everything is computed from the kernel's queries and keys, over blocks of query rows. So the result does not depend on the
attention kernel, and the memory needed does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...tensors import CPUS

# Size of the largest temporary, in elements: 2^21 float32 are 8 MB, which still fits a CPU cache well. An accelerator is
# faster with fewer, larger steps, if its memory allows (`block_elements`).
_ELEMENTS = 1 << 21
_ELEMENTS_ACCELERATOR = 34 << 20
# Devices on which probabilities are computed in half precision.
HALF_PRECISION = {"cuda", "meta"}
_NAMES = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")


@dataclass(frozen=True)
class AttentionCall:
    """An attention call with its heads split: q [B, H, Nq, d], k and v [B, H, Nk, d].

    ``mask``: None, or four axes that broadcast to [B, H, Nq, Nk]; boolean (True = keep) or added to the logits. ``total``:
    logarithm of the softmax's denominators [B, H, Nq], if known. They stay those of all keys when some are picked.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    total: Tensor | None = None

    def with_total(self, total: Tensor) -> AttentionCall:
        """The same call with known denominators."""
        return replace(self, total=total)

    def by_frame(self, frames: int) -> AttentionCall:
        """The frames of a video as samples: [B * frames, H, N, d]. Each keeps only its own keys; needs ``total``."""
        q, k, v = (
            x.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1) for x in (self.q, self.k, self.v[..., :0])
        )
        total = None if self.total is None else self.total.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)
        return AttentionCall(q, k, v, None, self.scale, total)

    def rows(self, rows: slice) -> AttentionCall:
        """The same call, for some samples of the batch."""
        if rows.start == 0 and rows.stop == self.q.shape[0]:
            return self
        mask = self.mask
        if mask is not None and mask.shape[0] == self.q.shape[0]:
            mask = mask[rows]
        total = None if self.total is None else self.total[rows]
        return AttentionCall(self.q[rows], self.k[rows], self.v[rows], mask, self.scale, total)

    def queries(self, queries: slice) -> AttentionCall:
        """The same call, for some of the queries."""
        if queries in (slice(None), slice(0, self.q.shape[2])):
            return self
        mask = self.mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        total = None if self.total is None else self.total[:, :, queries]
        return AttentionCall(self.q[:, :, queries], self.k, self.v, mask, self.scale, total)

    def keys(self, keys: slice) -> AttentionCall:
        """The same call with only some of the keys. With ``total``, its softmax stays that of the whole call."""
        mask = self.mask
        if mask is not None and mask.shape[-1] > 1:
            mask = mask[..., keys]
        return AttentionCall(self.q, self.k[:, :, keys], self.v[:, :, keys], mask, self.scale, self.total)


def _largest(call: AttentionCall) -> int:
    # Large models have large activations of their own: their feed-forward layers hold four to seven times the queries.
    return _ELEMENTS if call.q.device.type in CPUS else max(_ELEMENTS_ACCELERATOR, min(3 * call.q.numel(), 96 << 20))


def block_elements(call: AttentionCall) -> int:
    """Size of the largest block of a call, at most an eighth of the free memory, because a softmax needs its block twice."""
    if call.q.device.type not in ("cuda", "xpu"):
        return _largest(call)
    import comfy.model_management

    return max(1 << 21, min(_largest(call), int(comfy.model_management.get_free_memory(call.q.device)) // 32))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]"""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of ComfyUI's attention functions, positional or by name."""
    given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
    q, k, v, heads = given["q"], given["k"], given["v"], given["heads"]
    if not given.get("skip_reshape"):
        # Some callers (SD3) pass one of them with the heads already on an axis of their own.
        q, k, v = (x if x.ndim == 3 else x.flatten(2) for x in (q, k, v))
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


def sizes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int, int]:
    """The rows, queries and keys of a call with the arguments of ComfyUI's attention functions; allocates nothing.

    >>> sizes((torch.zeros(2, 6, 32), torch.zeros(2, 77, 32)), {})
    (2, 6, 77)
    """
    given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
    axis = 2 if given.get("skip_reshape") else 1
    return given["q"].shape[0], given["q"].shape[axis], given["k"].shape[axis]


def _four_axes(mask: Tensor, batch: int, queries: int) -> Tensor:
    """A mask in any shape that ComfyUI uses, as [B or 1, H or 1, Nq or 1, Nk]."""
    if mask.ndim == 2:
        return mask[:, None, None] if mask.shape[0] == batch != queries else mask[None, None]
    return mask[None, None, None] if mask.ndim == 1 else mask[:, None] if mask.ndim == 3 else mask


def _precision(call: AttentionCall) -> torch.dtype:
    """The precision of probabilities.

    On an accelerator, float32 would double the time and the memory of the largest tensors. With float16, a probability is off
    by at most a percent, which the mean over heads, rows and layers evens out. A mask may hold numbers beyond its range.
    """
    if call.q.dtype == torch.float64:
        return torch.float64
    half = call.q.dtype in (torch.float16, torch.bfloat16) and call.mask is None
    return torch.float16 if half and call.q.device.type in HALF_PRECISION else torch.float32


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In another precision, and then contiguous, so that no second copy is needed."""
    return x if x.dtype == dtype else x.to(dtype, memory_format=torch.contiguous_format)


def _with_total(q: Tensor, k: Tensor, total: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, H, N, d + 8] whose scaled products have ``total`` subtracted, in half precision.

    To subtract it in the product's kernel instead, that kernel would first get a copy of it for each key.
    """
    width = q.shape[-1]
    # Eight more channels instead of one, because matrix products need aligned rows. Each subtracts an eighth.
    wider_q, wider_k = (x.new_empty(*x.shape[:-1], width + 8, dtype=dtype) for x in (q, k))
    wider_q[..., :width], wider_k[..., :width] = q, k
    wider_k[..., width:].fill_(1)
    torch.mul(total[..., None].expand(*total.shape, 8), -1 / (8 * scale), out=wider_q[..., width:])
    return wider_q, wider_k


def probabilities(
    call: AttentionCall,
    index: Tensor | None = None,
    elements: int = 0,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of a call, block by block: (query rows, [B, H, rows, Nk]).

    On a CPU in float32 or better; on an accelerator in float16 where the model computes in half precision.

    ``index``: only these query rows, in this order (the slices then refer to positions in it). ``elements``: size of the
    largest block, 0 for that of the device. ``pick``: picks the query rows of [B, H, Nq, ...] as a view, for a call without
    mask; faster than an index.
    """
    q, total, mask = call.q, call.total, call.mask
    if pick is not None:
        q, total = pick(q), None if total is None else pick(total)
    elif index is not None:
        q, total = q[:, :, index], None if total is None else total[:, :, index]
        mask = mask[..., index, :] if mask is not None and mask.shape[-2] > 1 else mask
    precision = _precision(call)
    batch, heads = q.shape[:2]
    # One matrix product for each sample and head, with the scale and the denominators in the same kernel.
    known, k = total is not None, call.k
    if total is not None and precision == torch.float16:
        (q, k), total = _with_total(q, k, total, call.scale, precision), None
    queries, keys = (_cast(x, precision).reshape(batch * heads, -1, x.shape[-1]) for x in (q, k))
    if total is not None:
        total = _cast(total, precision).reshape(batch * heads, -1, 1)
    count, elements = queries.shape[1], elements or _largest(call)
    if not known and q.device.type not in CPUS:
        elements //= 2  # the softmax of a block is a second block
    step = max(1, elements // max(1, len(keys) * keys.shape[1]))
    step = -(-count // -(-count // step))  # blocks of equal size
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        if total is None:
            logits = torch.baddbmm(queries.new_empty(1, 1, 1), queries[:, rows], keys.mT, beta=0, alpha=call.scale)
        else:
            logits = torch.baddbmm(total[:, rows], queries[:, rows], keys.mT, beta=-1, alpha=call.scale)
        logits = logits.unflatten(0, (batch, heads))
        if mask is not None:
            part = mask if mask.shape[-2] == 1 else mask[..., rows, :]
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part.to(precision)
        block = [logits.exp_() if known else torch.softmax(logits, -1)]
        del logits
        yield rows, block.pop()  # nothing here holds it while the next one is computed
