"""The demo model's VAE: one level of the LeGall 5/3 wavelet, which is exactly invertible.

An image becomes four half-size bands (one smooth, three with details), 12 channels in all. Unlike pixel shuffling, the
transform overlaps neighbouring pixels and separates details, so small errors of the model look like soft shading instead
of a checkerboard. Source: Le Gall and Tabatabai 1988, in the lifting form of Sweldens 1996.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The smooth band is scaled to a standard deviation of about 1 (measured over 4,000 scenes, values -1..1). The details keep
# about the fraction that they have in the image. If they were scaled to 1 as well, edges would be visible at noise levels
# that still hide the shapes they belong to, so the model would have to fix outlines before it knows the shape.
SMOOTH_MEAN, SMOOTH_SCALE, DETAIL_SCALE = 0.13, 1.9, 1.5


def _next(x: Tensor, dim: int) -> Tensor:
    return torch.cat((x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, -1, 1)), dim)


def _previous(x: Tensor, dim: int) -> Tensor:
    return torch.cat((x.narrow(dim, 0, 1), x.narrow(dim, 0, x.shape[dim] - 1)), dim)


def _forward(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The smooth half and the details of one axis, given as -1 or -2."""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim)
    detail = odd - (even + _next(even, dim)) / 2
    return even + (detail + _previous(detail, dim)) / 4, detail


def _backward(smooth: Tensor, detail: Tensor, dim: int) -> Tensor:
    even = smooth - (detail + _previous(detail, dim)) / 4
    odd = detail + (even + _next(even, dim)) / 2
    return torch.stack((even, odd), dim).flatten(dim - 1, dim)


class WaveletCodec(nn.Module):
    """``encode``: images ``[B, 3, H, W]`` in -1..1 with even sides -> latents ``[B, 12, H/2, W/2]``. ``decode`` inverts it."""

    def __init__(self) -> None:
        super().__init__()
        # ComfyUI finds the device and size of a VAE through its parameters, so this constant is one.
        self.scale = nn.Parameter(torch.tensor([SMOOTH_SCALE, DETAIL_SCALE]), requires_grad=False)

    def encode(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] % 2 or pixels.shape[-2] % 2:
            raise ValueError(
                f"The wavelet needs even sides, got {pixels.shape[-2]}x{pixels.shape[-1]}; crop the image by one pixel."
            )
        low, high = _forward(pixels, -1)
        smooth, down = _forward(low, -2)
        across, both = _forward(high, -2)
        smooth = (smooth - SMOOTH_MEAN) * self.scale[0]
        return torch.cat((smooth, down * self.scale[1], across * self.scale[1], both * self.scale[1]), 1)

    def decode(self, latents: Tensor) -> Tensor:
        smooth, down, across, both = latents.chunk(4, 1)
        smooth = smooth / self.scale[0] + SMOOTH_MEAN
        low = _backward(smooth, down / self.scale[1], -2)
        high = _backward(across / self.scale[1], both / self.scale[1], -2)
        return _backward(low, high, -1)
