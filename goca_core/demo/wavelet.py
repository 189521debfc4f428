"""The demo models' VAE: one or two levels of the LeGall 5/3 wavelet, which is exactly invertible.

An image becomes four half-size bands (one smooth, three with details), 12 channels in all. A second level splits each of
them again (a wavelet packet): 48 channels at a quarter of the size. Unlike pixel shuffling, the transform overlaps
neighbouring pixels and separates details, so small errors of the model look like soft shading instead of a checkerboard.
Source: Le Gall and Tabatabai 1988, in the lifting form of Sweldens 1996.
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


def _split(x: Tensor) -> Tensor:
    """Four half-size bands for each channel, all smooth ones first: [B, C, H, W] -> [B, 4 C, H/2, W/2]."""
    low, high = _forward(x, -1)
    return torch.cat((*_forward(low, -2), *_forward(high, -2)), 1)


def _join(bands: Tensor) -> Tensor:
    smooth, down, across, both = bands.chunk(4, 1)
    return _backward(_backward(smooth, down, -2), _backward(across, both, -2), -1)


class WaveletCodec(nn.Module):
    """``encode``: images ``[B, 3, H, W]`` in -1..1 -> latents ``[B, 3 * 4**levels, H / 2**levels, W / 2**levels]``.

    The sides must be multiples of ``2**levels``. ``decode`` inverts it. The first three channels are the smooth band.
    """

    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        self.levels = levels
        # ComfyUI finds the device and size of a VAE through its parameters, so this constant is one.
        self.scale = nn.Parameter(torch.tensor([SMOOTH_SCALE, DETAIL_SCALE]), requires_grad=False)

    @property
    def cell(self) -> int:
        """Side in pixels of one latent cell."""
        return int(2**self.levels)

    @property
    def channels(self) -> int:
        return int(3 * 4**self.levels)

    def encode(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height % self.cell or width % self.cell:
            sides = "even sides" if self.levels == 1 else f"sides that are multiples of {self.cell}"
            raise ValueError(f"The wavelet needs {sides}, got {height}x{width}; crop the image by a few pixels.")
        for _ in range(self.levels):
            pixels = _split(pixels)
        return torch.cat(((pixels[:, :3] - SMOOTH_MEAN) * self.scale[0], pixels[:, 3:] * self.scale[1]), 1)

    def decode(self, latents: Tensor) -> Tensor:
        bands = torch.cat((latents[:, :3] / self.scale[0] + SMOOTH_MEAN, latents[:, 3:] / self.scale[1]), 1)
        for _ in range(self.levels):
            bands = _join(bands)
        return bands
