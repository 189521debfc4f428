"""Bring a recording to the CPU, with one wait for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors on the CPU. Those of a GPU that have one precision share a transfer."""
    if not any(tensor.device.type == "cuda" for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    found: list[Tensor | None] = [None] * len(tensors)
    for device, dtype in kinds:
        places = [i for i, tensor in enumerate(tensors) if (tensor.device, tensor.dtype) == (device, dtype)]
        flat = torch.cat([tensors[i].flatten() for i in places])
        staged = torch.empty(flat.shape, dtype=dtype, pin_memory=True).copy_(flat, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        # Pinned memory is scarce, so the recording does not stay there; and a view would keep what all share.
        for i, part in zip(places, staged.split([math.prod(tensors[i].shape) for i in places]), strict=True):
            found[i] = part.view(tensors[i].shape).clone()
    return [tensor for tensor in found if tensor is not None]
