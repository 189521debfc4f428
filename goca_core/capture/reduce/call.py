"""Compute the softmax of an attention call block by block, without holding heads x pixels x tokens in memory.

Everything is computed in float32 from the kernel's queries and keys, over blocks of query rows. So the result does not
depend on the attention kernel, and the memory needed does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Size of the largest temporary, in elements: 2^21 float32 are 8 MB, which still fits a CPU cache well. An accelerator is
# faster with fewer, larger steps.
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
        """The same call, for some samples of the batch."""
        mask = self.mask
        if mask is not None and mask.shape[0] == self.q.shape[0]:
            mask = mask[rows]
        return AttentionCall(self.q[rows], self.k[rows], self.v[rows], mask, self.scale)

    def queries(self, queries: slice) -> AttentionCall:
        """The same call, for some of the queries."""
        mask = self.mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        return AttentionCall(self.q[:, :, queries], self.k, self.v, mask, self.scale)

    def keys(self, keys: slice) -> AttentionCall:
        """The same call with only some of the keys; pass ``total`` to get the softmax of the whole call."""
        mask = self.mask
        if mask is not None and mask.shape[-1] > 1:
            mask = mask[..., keys]
        return AttentionCall(self.q, self.k[:, :, keys], self.v[:, :, keys], mask, self.scale)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of ComfyUI's attention functions, positional or by name."""
    given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
    q, k, v, heads = given["q"], given["k"], given["v"], given["heads"]
    if not given.get("skip_reshape"):
        # Some callers (SD3) pass one of them with the heads already on an axis of their own.
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
    """A mask in any shape that ComfyUI uses, as [B or 1, H or 1, Nq or 1, Nk]."""
    if mask.ndim == 2:
        return mask[:, None, None] if mask.shape[0] == batch != queries else mask[None, None]
    return mask[None, None, None] if mask.ndim == 1 else mask[:, None] if mask.ndim == 3 else mask


def probabilities(
    call: AttentionCall, index: Tensor | None = None, total: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of a call, block by block: (query rows, [B, H, rows, Nk] in float32 or better).

    ``index``: only these query rows, in this order (the slices then refer to positions in it). ``total``: the logarithm
    of the softmax's denominators [B, H, Nq], if known; it may cover more keys than the call has.
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
