"""The latent of an image for a node that takes the image itself."""

from __future__ import annotations

from typing import Any

import comfy.utils
from torch import Tensor

from ..attention.record import AttentionError

_MULTIPLE = 64  # of pixels, for every kind of VAE and patch


def latent_of(image: Tensor | None, vae: Any, latent: dict[str, Any] | None, megapixels: float) -> dict[str, Any]:
    """The LATENT that is given, or that of an image [B, H, W, 3], scaled down to at most so many megapixels (0: as it is).

    Raises AttentionError when there is neither, or an image without a VAE.
    """
    if latent is not None:
        return latent
    if image is None:
        raise AttentionError("There is no image: connect an IMAGE and the model's VAE, or a LATENT.")
    if vae is None:
        raise AttentionError(
            "The image needs a VAE: connect that of the model's loader to vae, or give a LATENT instead."
        )
    return {"samples": vae.encode(_scaled(image[..., :3], megapixels))}


def _scaled(image: Tensor, megapixels: float) -> Tensor:
    height, width = image.shape[1:3]
    scale = (megapixels * 1024 * 1024 / (height * width)) ** 0.5
    if megapixels <= 0 or scale >= 1:
        return image
    size = [max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (width, height)]
    return comfy.utils.common_upscale(image.movedim(-1, 1), *size, "lanczos", "disabled").movedim(1, -1)
