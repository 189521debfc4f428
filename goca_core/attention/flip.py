"""Flip a recording left to right, to average the attention of an image with that of the flipped image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .record import Attention


def flip_recording(attention: Attention) -> Attention:
    """Flip a recording: that of a flipped image then fits the image itself.

    Flips cross-attention on each layer's own grid, and the affinity on both of its axes, in its own dtype. Layer scores stay
    the same, because they compare a layer with a reference affinity of the same image.
    """
    layers = tuple(
        replace(
            layer,
            maps={name: value[:, _flip_index(layer.height, layer.width, value)] for name, value in layer.maps.items()},
        )
        for layer in attention.layers
    )
    affinity = attention.affinity
    if affinity is not None:
        index = _flip_index(affinity.height, affinity.width, affinity.matrix)
        parts = {name: part[:, index][:, :, index] for name, part in affinity.parts.items()}
        affinity = replace(affinity, matrix=affinity.matrix[:, index][:, :, index], parts=parts)
    return replace(attention, layers=layers, affinity=affinity)


def _flip_index(height: int, width: int, like: Tensor) -> Tensor:
    """For each token of a grid in raster order, the index of the opposite token in its row, [height * width]."""
    return torch.arange(height * width, device=like.device).unflatten(0, (height, width)).flip(1).flatten()
