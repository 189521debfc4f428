"""The softmax denominators of an attention call, from the device's fused kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .call import AttentionCall

# Fused kernels that also return the logarithm of the denominators, by device type.
_KERNELS: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "cuda": ("_scaled_dot_product_flash_attention", (torch.float16, torch.bfloat16)),
    "cpu": ("_scaled_dot_product_flash_attention_for_cpu", (torch.float32, torch.bfloat16, torch.float16)),
}
# Devices on which the kernel is cheaper than a pass over all keys.
FUSED: set[str] = {"cuda"}


def log_total(call: AttentionCall) -> Tensor | None:
    """Logarithm of the softmax's denominators, [B, H, Nq] in float32, from the device's fused kernel.

    None if there is no kernel for the call, or its result differs from a few rows that are computed directly. The check
    is needed because these kernels are not part of torch's public API.
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
    # NaNs count as equal here: they are reported when the maps are used.
    return torch.allclose(total[:, last, some].float(), logits.logsumexp(-1), atol=1e-3, equal_nan=True)
