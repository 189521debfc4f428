"""One file for each model family; the first that matches a model is used."""

from __future__ import annotations

from ..family import Family
from .auraflow import AuraFlow
from .cogvideox import CogVideoX
from .cosmos1 import Cosmos1
from .cosmos_predict2 import Anima, CosmosPredict2
from .flux import Chroma, Flux
from .hunyuan_dit import HunyuanDiT
from .hunyuan_video import HunyuanVideo
from .kandinsky5 import Kandinsky5
from .ltxv import LTXV
from .lumina import Lumina
from .mochi import Mochi
from .pixart import PixArt
from .qwen_image import QwenImage
from .sd3 import SD3
from .unet import UNet
from .wan import Wan

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
    CosmosPredict2(),
    Anima(),
    Kandinsky5(),
    Wan(),
    HunyuanVideo(),
    LTXV(),
    Mochi(),
    CogVideoX(),
    Cosmos1(),
)
