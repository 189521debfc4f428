"""Joint attention, where text and picture are one sequence, without ever forming its matrix.

With J the joint softmax, the text attention of a layer is J[picture rows, text columns] and its self-attention
J[picture rows, picture columns]; neither is renormalised, so their rows sum to the attention that falls on text and on
the picture (GoCA, on MM-DiT models). Both need the softmax's denominators over all keys. Two ways are exact:

- one pass over blocks of query rows, each with its softmax over all keys. On a CPU this costs less than the attention
  call itself, because no values are multiplied, and it is the only way with a mask or without a fused kernel;
- where few rows of self-attention are wanted, an accelerator's fused kernel gives the logarithm of the denominators of
  all rows for next to nothing, and then only the kept columns and the wanted rows are computed.

A third, fused attention with one-hot values, gives the text columns too, but in the values' precision, which is half on
an accelerator, and on a CPU at the price of a whole attention call. ``benchmarks/joint.py`` compares the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..families.base import Spans
from .call import AttentionCall, TextMaps, TokenColumns, cross_maps, probabilities
from .self_maps import FilmMaps

# Fused kernels that also return the logarithm of the denominators, by kind of device.
_KERNELS: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "cuda": ("_scaled_dot_product_flash_attention", (torch.float16, torch.bfloat16)),
    "cpu": ("_scaled_dot_product_flash_attention_for_cpu", (torch.float32, torch.bfloat16, torch.float16)),
}
# Where asking the kernel is cheaper than a pass over all keys.
FUSED: set[str] = {"cuda"}


def joint_maps(
    call: AttentionCall,
    spans: Spans,
    weights: Mapping[str, Tensor],
    columns: TokenColumns,
    selves: FilmMaps | None = None,
) -> dict[str, Tensor]:
    """Text maps and self-attention of one joint call, whose queries are the picture's and whose keys are all.

    ``weights``: head method -> [B, N, H]. ``columns``: of the text keys. ``selves``: takes the self-attention, if it is
    wanted. Returns a map [B, N, columns] for each method.
    """
    # Of a film's self-attention only the part of each frame on itself is wanted.
    partial = selves is None or selves.index is not None or selves.frames > 1
    total = log_total(call) if partial and call.q.device.type in FUSED else None
    if total is not None:
        if selves is not None:
            selves.fill(call.keys(spans.image), total)
        return cross_maps(call.keys(spans.text), weights, columns, total)
    gathered = TextMaps(weights, columns)
    numbers = torch.arange(call.q.shape[2])
    for rows, probs in probabilities(call):
        gathered.add(rows, probs[..., spans.text])
        if selves is not None:
            selves.add(numbers[rows], probs[..., spans.image])
    return gathered.result()


def log_total(call: AttentionCall) -> Tensor | None:
    """Logarithm of the softmax's denominators, [B, H, Nq] in float32, from the device's fused kernel.

    None where there is no kernel for the call, or where what it says is not what a few rows computed directly say: the
    kernels are not part of torch's public face.
    """
    name, dtypes = _KERNELS.get(call.q.device.type, ("", ()))
    kernel: Callable[..., Any] | None = getattr(torch.ops.aten, name, None) if name else None
    width = call.q.shape[-1]
    if kernel is None or call.q.dtype not in dtypes or call.mask is not None or width % 8 or width > 256:
        return None
    try:
        total = kernel(call.q, call.k, call.v, scale=call.scale)[1]
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return total if _agrees(total, call) else None


def _agrees(total: Tensor, call: AttentionCall) -> bool:
    batch, heads, count = call.q.shape[:3]
    if total.shape != (batch, heads, count):
        return False
    some = torch.tensor(sorted({0, count // 3, 2 * count // 3, count - 1}), device=total.device)
    last = slice(heads - 1, None)
    logits = call.q[:, last, some].float() @ call.k[:, last].float().transpose(-1, -2) * call.scale
    # Numbers that are not finite are for the maps to show.
    return torch.allclose(total[:, last, some].float(), logits.logsumexp(-1), atol=1e-3, equal_nan=True)
