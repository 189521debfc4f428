"""Weights in 8 bits: each matrix is stored as int8 with one scale per output channel, half the size of float16."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = ".scale"
# Smaller tensors (norms, biases) stay in half precision: they need little room and suffer most from rounding.
_LEAST = 2048


def compress(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions as int8 with scales, all other tensors of floating point as float16."""
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            stored[name] = value.contiguous()
        elif value.ndim < 2 or value.numel() < _LEAST:
            stored[name] = value.half().contiguous()
        else:
            rows = value.float().flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
            codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
            stored[name], stored[name + SCALE] = codes.view(value.shape).contiguous(), scale
    return stored


def expand(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that were compressed, in float16. Weights that never were stay as they are."""
    tensors: dict[str, Tensor] = {}
    for name, value in stored.items():
        scale = stored.get(name + SCALE)
        if scale is not None:
            value = (value.float() * scale.view(-1, *[1] * (value.ndim - 1))).half()
        elif name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        tensors[name] = value
    return tensors
