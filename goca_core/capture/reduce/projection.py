"""The weight that an output projection really applies, after ComfyUI's patches, casts and dequantisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def effective_weight(module: nn.Module, device: torch.device) -> Tensor:
    """[C_out, C] in float32 on ``device``, including LoRA patches. Call it while the model is running."""
    if type(module) is nn.Linear:
        return module.weight.detach().to(device, torch.float32)
    import comfy.ops

    if isinstance(module, comfy.ops.CastWeightBiasOp):
        like = torch.empty(1, dtype=torch.float32, device=device)
        weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
        try:
            # A quantised weight may still be quantised after the cast.
            if type(weight).__name__ == "QuantizedTensor":
                weight = weight.dequantize()
            # A copy, because ComfyUI may reuse the buffer.
            return weight.detach().to(torch.float32, copy=True)
        finally:
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    return _probe(module, device)


def _probe(module: nn.Module, device: torch.device) -> Tensor:
    """The weight of a linear layer of an unknown class (GGUF and others), from its outputs for the unit vectors."""
    width = getattr(module, "in_features", None)
    if width is None:
        raise TypeError(
            f"the output projection {type(module).__name__} has no in_features, so its weight cannot be read"
        )
    zero = module(torch.zeros(1, width, device=device))
    columns = module(torch.eye(width, device=device, dtype=zero.dtype)) - zero
    return columns.float().T
