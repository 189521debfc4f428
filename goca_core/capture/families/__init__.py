"""One file for each model family; the first that matches a model is used."""

from __future__ import annotations

from ..family import Family
from .flux import Flux
from .hunyuan_dit import HunyuanDiT
from .pixart import PixArt
from .unet import UNet

FAMILIES: tuple[Family, ...] = (UNet(), PixArt(), HunyuanDiT(), Flux())
