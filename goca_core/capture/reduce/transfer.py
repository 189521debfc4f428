"""Bring a recording to the CPU, with one wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors on the CPU. All copies from a GPU are started before the first is waited for."""
    if not any(tensor.device.type == "cuda" for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    staged = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    ]
    for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    # Pinned memory is scarce, so the recording does not stay there.
    return [tensor.clone() for tensor in staged]
