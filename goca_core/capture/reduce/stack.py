"""Collect layers of one kind and size, so that an accelerator reduces them at once.

A GPU finishes a small kernel sooner than the CPU can start the next one. So the layers of a UNet are copied side by side,
like the samples of a batch, and each kernel of the reduction is started once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

L = TypeVar("L")


class LayerStack(Generic[L]):
    """Copies of the tensors of up to ``capacity`` layers: at most ``most``, and at most ``limit`` bytes.

    >>> stack = LayerStack[str]([torch.zeros(2, 3)], limit=48)  # 24 bytes for each layer
    >>> stack.add("first", [torch.ones(2, 3)]), stack.add("second", [torch.ones(2, 3)])
    (False, True)
    >>> layers, (tensor,) = stack.take()
    >>> layers, tuple(tensor.shape)
    (('first', 'second'), (2, 2, 3))
    """

    def __init__(self, like: Sequence[Tensor], most: int = 1 << 10, limit: int = 16 << 20) -> None:
        self._shapes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in like]
        size = sum(tensor.numel() * tensor.element_size() for tensor in like)
        self.capacity = max(1, min(most, limit // max(1, size)))
        self.bytes = self.capacity * size
        self._buffers: list[Tensor] = []
        self._layers: list[L] = []

    def add(self, layer: L, tensors: Sequence[Tensor]) -> bool:
        """Copy the tensors of a layer; whether the stack is full now."""
        if not self._buffers:
            self._buffers = [
                torch.empty(self.capacity, *shape, dtype=dtype, device=device) for shape, dtype, device in self._shapes
            ]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer[len(self._layers)].copy_(tensor)
        self._layers.append(layer)
        return len(self._layers) == self.capacity

    def take(self) -> tuple[tuple[L, ...], list[Tensor]]:
        """The layers, and their tensors with an axis for the layers in front. The stack is empty then."""
        layers, parts = tuple(self._layers), [buffer[: len(self._layers)] for buffer in self._buffers]
        self._layers, self._buffers = [], []
        return layers, parts


class Room:
    """Bytes for the copies of one kind of layer, and for all copies, by the size of the model's activations.

    ``see`` is told the bytes of each tensor of queries. Of large layers a kernel takes longer than its start, so there the
    limit leaves no room for two.
    """

    def __init__(self) -> None:
        self.limit, self.total = 16 << 20, 60 << 20

    def see(self, size: int) -> None:
        self.limit = max(self.limit, min(7 * size, 34 << 20))
        self.total = max(self.total, min(24 * size, 125 << 20))
