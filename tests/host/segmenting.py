"""What the tests of segmenting share: images, their recordings, and how far two recordings are apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from goca_core.attention.record import Attention
from goca_core.capture.families import network_of
from goca_core.capture.options import RecordOptions
from goca_core.capture.segment import segment

from .device import repeated

PAPER = 0.346  # the noise level of SD 1.x in the paper, t = 100 of 1000


def latents(batch: int = 1, size: tuple[int, int] = (16, 24), channels: int = 4, seed: int = 3) -> Tensor:
    """Images as a VAE encodes them."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed)) * 5


def recording_of(model: Any, samples: Tensor, positive: Any, **options: Any) -> Attention:
    kept = {name: options.pop(name) for name in RecordOptions.__dataclass_fields__ if name in options}
    with torch.inference_mode():
        return segment(model, samples, positive, options=RecordOptions(**kept), **options)


def repeated_recording(model: Any, samples: Tensor, positive: Any, **options: Any) -> Attention:
    """One of two recordings that are the same; else nothing can be said about a third (see `device.repeated`)."""
    found: list[Attention] = []

    def numbers() -> Tensor:
        found.append(recording_of(model, samples, positive, **options))
        return torch.cat([layer.maps[method].flatten() for layer in found[-1].layers for method in layer.maps])

    repeated(numbers)
    return found[-1]


def difference(first: Attention, second: Attention) -> float:
    """The largest one between all numbers of two recordings, as a share of the largest number of each kind."""
    pairs = []
    for one, other in zip(first.layers, second.layers, strict=True):
        assert (one.name, one.height, one.width) == (other.name, other.height, other.width)
        pairs += [(one.maps[method], other.maps[method]) for method in one.maps]
        pairs += [(one.scores[method], other.scores[method]) for method in one.scores]
    assert first.affinity is not None and second.affinity is not None
    pairs.append((first.affinity.matrix, second.affinity.matrix))
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The number of rows of every forward pass."""
    rows: list[int] = []
    handle = network_of(model.model).register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()
