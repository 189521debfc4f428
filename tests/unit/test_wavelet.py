"""The demo model's image code is exact, and keeps what is smooth apart from details."""

from __future__ import annotations

import pytest
import torch

from goca_core.demo.wavelet import WaveletCodec


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 20, 36), (2, 3, 4, 4)])
def test_decoding_undoes_encoding(shape: tuple[int, ...], levels: int) -> None:
    codec = WaveletCodec(levels)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = codec.encode(pixels)
    assert latents.shape == (shape[0], codec.channels, shape[2] // codec.cell, shape[3] // codec.cell)
    assert (codec.channels, codec.cell) == {1: (12, 2), 2: (48, 4)}[levels]
    torch.testing.assert_close(codec.decode(latents), pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("levels", [1, 2])
def test_encoding_undoes_decoding(levels: int) -> None:
    codec = WaveletCodec(levels)
    latents = torch.randn(2, codec.channels, 9, 14, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_slope_has_no_details_inside(levels: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    slope = (0.01 * rows - 0.02 * columns).expand(1, 3, -1, -1)
    details = WaveletCodec(levels).encode(slope)[:, 3:, 1:-1, 1:-1]
    assert details.abs().max() < 1e-4


def test_an_error_in_the_latent_spreads_softly() -> None:
    """One wrong value of the smooth band shows as a bump that falls off, not as a lone square."""
    latents = torch.zeros(1, 12, 8, 8)
    latents[0, 0, 4, 4] = 1
    bump = WaveletCodec().decode(latents)[0, 0] - WaveletCodec().decode(torch.zeros(1, 12, 8, 8))[0, 0]
    assert bump[8, 8] == bump.max() and 0 < bump[8, 7] < bump[8, 8] and 0 < bump[7, 7] < bump[8, 7]


@pytest.mark.parametrize(("levels", "message"), [(1, "even sides, got 31x64"), (2, "multiples of 4, got 31x64")])
def test_sides_that_do_not_fit_are_refused(levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveletCodec(levels).encode(torch.zeros(1, 3, 31, 64))
