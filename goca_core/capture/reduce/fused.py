"""The softmax denominators of an attention call, from the fused kernel that computed it.

torch's fused kernels return the logarithm of the denominators beside their result, and torch's own attention drops it.
`watch_totals` looks at the operators that an attention function runs, and keeps it. The function runs the same kernels as
without it, so its result does not change by a bit, and the denominators cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .call import AttentionCall, block_elements

# Fused kernels that take queries and keys first, and return the logarithm of the denominators as their second result.
_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
_HALF = (torch.float16, torch.bfloat16)
# The fused kernel of a device on which another run of it is cheap, and the precisions that it can compute in. On a CPU such a
# run costs more than the probabilities themselves.
FUSED: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "cuda": ("_scaled_dot_product_flash_attention", _HALF),
    "meta": ("_scaled_dot_product_flash_attention", _HALF),
}
# What a kernel raises that a device or a version of torch does not have in this form. It is not part of torch's public API,
# so its absence is no error: there is a way without it.
_REFUSED = (RuntimeError, TypeError)
# Whether the denominators of a kind of call were found to be right.
_trusted: dict[tuple[Any, ...], bool] = {}


class watch_totals(TorchDispatchMode):
    """Keeps the denominators of the attention call that runs while it is active.

    >>> q = k = v = torch.zeros(1, 2, 3, 8)
    >>> with watch_totals() as seen:
    ...     out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> total = seen.complete(AttentionCall(q, k, v, None, 8**-0.5)).total  # of equal logits: log 3
    >>> bool((total - torch.tensor(3.0).log()).abs().max() < 1e-6)
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[Tensor, Tensor, float | None, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # In inference mode it arrives whole, before it has chosen one of the kernels.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _KERNELS:
            self._found.append((args[0], args[1], (kwargs or {}).get("scale"), out[1]))
        return out

    def complete(self, call: AttentionCall) -> AttentionCall:
        """The call with its denominators, if the function ran one fused kernel, with just these queries and keys."""
        if len(self._found) != 1:
            return call
        q, k, scale, total = self._found[0]
        same = all(_same(ours, theirs) for ours, theirs in ((call.q, q), (call.k, k)))
        # The kernel divides by a root where the call has a power: the two can differ in the last bit.
        agreed = scale is None or math.isclose(scale, call.scale, rel_tol=1e-9)
        return _with_total(call, total) if same and agreed else call


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same memory, seen in the same way."""
    return (
        ours.shape == theirs.shape
        and ours.dtype == theirs.dtype
        and ours.stride() == theirs.stride()
        and ours.data_ptr() == theirs.data_ptr()
    )


def _with_total(call: AttentionCall, total: Tensor) -> AttentionCall:
    """The call with these denominators, if they can be those of its own softmax."""
    queries = call.q.shape[:3]
    if call.mask is not None or total.ndim != 3 or total.shape[2] < queries[2]:
        return call
    total = total[:, :, : queries[2]]  # some kernels round the number of rows up
    return call.with_total(total) if total.shape == queries and _trust(total, call) else call


def compute_total(call: AttentionCall) -> AttentionCall:
    """The call with its denominators from a run of the device's fused kernel; as it is where there is none.

    For attention functions that do not show theirs (`watch_totals`).
    """
    kernel = _kernel(call)
    if call.total is not None or kernel is None:
        return call
    try:
        return _with_total(call, kernel(call.q, call.k, call.v, scale=call.scale)[1])
    except _REFUSED:
        return call


def exact_total(call: AttentionCall) -> AttentionCall:
    """The call, without a mask, with its denominators: where no kernel gives them, from its logits, block by block."""
    call = compute_total(call)
    if call.total is not None:
        return call
    keys = call.k.float().mT
    step = max(1, block_elements(call) // max(1, keys.shape[0] * keys.shape[1] * keys.shape[3]))
    parts = [((part.float() @ keys) * call.scale).logsumexp(-1) for part in call.q.split(step, 2)]
    return call.with_total(torch.cat(parts, 2))


def _kernel(call: AttentionCall) -> Callable[..., Any] | None:
    """The fused kernel for a call, if there is one."""
    name, dtypes = FUSED.get(call.q.device.type, ("", ()))
    fits = call.q.dtype in dtypes and call.mask is None and call.q.shape[-1] % 8 == 0 and call.q.shape[-1] <= 256
    return getattr(torch.ops.aten, name, None) if fits else None


def attention_to_columns(call: AttentionCall, columns: Columns) -> tuple[Tensor, Tensor | None] | None:
    """The probabilities of a call, summed by columns: [B, H, Nq, T], in the precision of the call.

    This is attention whose values are the columns, so a fused kernel computes it without the matrix of probabilities. If the
    call's denominators are known, the second result are the factors [B, H, Nq] that bring the first to them: the call may have
    only some of the keys. None where there is no such kernel.
    """
    kernel, width = _kernel(call), call.q.shape[-1]
    if kernel is None:
        return None
    parts: list[Tensor] = []
    total = None
    try:
        for values in columns.values(width, call.q.dtype):
            out, total = kernel(call.q, call.k, values.expand_as(call.k), scale=call.scale)[:2]
            parts.append(out)
    except _REFUSED:
        return None
    found = (parts[0] if len(parts) == 1 else torch.cat(parts, -1))[..., : columns.count]
    if call.total is None or total is None:
        return found, None
    difference = total[:, :, : call.q.shape[2]] - call.total
    return found, torch.exp(difference, out=torch.empty_like(difference, dtype=found.dtype))


class Columns:
    """Which keys are added up to which column, as a matrix [Nk, T] of zeros and ones on a device."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.count = matrix, matrix.shape[1]
        self._values: dict[tuple[int, torch.dtype], tuple[Tensor, ...]] = {}

    def values(self, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The matrix as values [Nk, width] of an attention call, as many as it needs; the last is filled up with zeros."""
        if (width, dtype) not in self._values:
            filled = torch.nn.functional.pad(self.matrix.to(dtype), (0, -self.count % width))
            self._values[width, dtype] = tuple(part.contiguous() for part in filled.split(width, 1))
        return self._values[width, dtype]


def _trust(total: Tensor, call: AttentionCall) -> bool:
    """Whether denominators of this kind are right: compared once per kind with some that are computed directly.

    The kernels are not part of torch's public API, and an attention function may scale or mask in a way of its own.
    """
    kind = (call.q.device, call.q.dtype, call.q.shape[-1], call.scale)
    if kind not in _trusted:
        _trusted[kind] = agrees(total, call)
    return _trusted[kind]


def agrees(total: Tensor, call: AttentionCall) -> bool:
    """Whether denominators are those of a call, in four of its query rows. Waits for the device."""
    count = call.q.shape[2]
    some = sorted({0, count // 3, 2 * count // 3, count - 1})
    q = torch.stack([call.q[:, -1, row] for row in some], 1).float()
    logits = q @ call.k[:, -1].float().mT * call.scale
    found = torch.stack([total[:, -1, row] for row in some], 1).float()
    # NaNs count as equal here: they are reported when the maps are used.
    return torch.allclose(found, logits.logsumexp(-1), atol=1e-3, equal_nan=True)
