"""The weight that an output projection really applies, after ComfyUI's patches, casts and dequantisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def effective_weight(module: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """The weight [C_out, C] that ``module`` applies to inputs ``like``, including LoRA patches, while the body runs.

    In the device and precision of ``like``, as the module's own forward pass asks for it: ComfyUI may keep what was asked
    for first and use it from then on. Call it while the model is running.
    """
    if type(module) is nn.Linear:
        yield module.weight.detach().to(like)
        return
    import comfy.ops

    if not isinstance(module, comfy.ops.CastWeightBiasOp):
        yield _probe(module, like)
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like.new_empty(1), offloadable=True)
    try:
        # A quantised weight may still be quantised after the cast.
        yield (weight.dequantize() if type(weight).__name__ == "QuantizedTensor" else weight).detach().to(like)
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _probe(module: nn.Module, like: Tensor) -> Tensor:
    """The weight of a linear layer of an unknown class (GGUF and others), from its outputs for the unit vectors."""
    width = getattr(module, "in_features", None)
    if width is None:
        raise TypeError(
            f"the output projection {type(module).__name__} has no in_features, so its weight cannot be read"
        )
    zero = module(like.new_zeros(1, width))
    columns = module(torch.eye(width, device=like.device, dtype=like.dtype)) - zero
    return columns.to(like.dtype).T
