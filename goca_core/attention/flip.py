"""Left and right exchanged in a recording, for averaging what a model says about a picture and about its mirror image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .record import Attention


def flip_recording(attention: Attention) -> Attention:
    """The recording seen in a mirror: of a mirrored picture it gives the one of the picture itself.

    Cross-attention is mirrored on each layer's own grid, the affinity on both of its axes, in the type it has. Layer
    scores compare a layer with a reference of the same picture, so they stay.
    """
    layers = tuple(
        replace(
            layer,
            maps={name: value[:, _places(layer.height, layer.width, value)] for name, value in layer.maps.items()},
        )
        for layer in attention.layers
    )
    affinity = attention.affinity
    if affinity is not None:
        places = _places(affinity.height, affinity.width, affinity.matrix)
        parts = {name: part[:, places][:, :, places] for name, part in affinity.parts.items()}
        affinity = replace(affinity, matrix=affinity.matrix[:, places][:, :, places], parts=parts)
    return replace(attention, layers=layers, affinity=affinity)


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """For each place of a grid in raster order the place opposite to it in its row, [height * width]."""
    return torch.arange(height * width, device=like.device).unflatten(0, (height, width)).flip(1).flatten()
