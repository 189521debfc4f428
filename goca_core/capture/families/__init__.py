"""One file for each model family; the first that matches a model is used."""

from __future__ import annotations

from ..family import Family
from .auraflow import AuraFlow
from .flux import Chroma, Flux
from .hunyuan_dit import HunyuanDiT
from .lumina import Lumina
from .pixart import PixArt
from .qwen_image import QwenImage
from .sd3 import SD3
from .unet import UNet

FAMILIES: tuple[Family, ...] = (
    UNet(),
    PixArt(),
    HunyuanDiT(),
    Flux(),
    Chroma(),
    SD3(),
    AuraFlow(),
    QwenImage(),
    Lumina(),
)
