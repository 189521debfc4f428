"""One file for each model family; the first that matches a model is used."""

from __future__ import annotations

from ..family import Family
from .unet import UNet

FAMILIES: tuple[Family, ...] = (UNet(),)
