"""One file for each model family; the first that matches a model is used."""

from __future__ import annotations

from typing import Any

from torch import nn

from .auraflow import AuraFlow
from .base import Family, Plan
from .cascade import StableCascade
from .cogvideox import CogVideoX
from .cosmos1 import Cosmos1
from .cosmos_predict2 import Anima, CosmosPredict2
from .ernie import Ernie
from .flux import Chroma, Flux, Flux2, FluxWithoutClip
from .hidream import HiDream
from .hidream_o1 import HiDreamO1
from .hunyuan_dit import HunyuanDiT
from .hunyuan_image import HunyuanImage
from .hunyuan_video import HunyuanVideo
from .ideogram4 import Ideogram4
from .joyimage import JoyImage
from .kandinsky5 import Kandinsky5, Kandinsky6
from .krea2 import Krea2
from .lens import Lens
from .ltxv import LTX2, LTXV
from .lumina import Lumina, MingImage
from .minimax_h3 import MiniMaxH3
from .mochi import Mochi
from .omnigen2 import Boogu, Omnigen2
from .pixart import PixArt
from .pixeldit import PixelDiT
from .qwen_image import MageFlow, QwenImage
from .qwen_image21 import QwenImage21
from .sd3 import SD3
from .unet import UNet
from .wan import Wan

FAMILIES: tuple[Family, ...] = (
    UNet(),
    PixArt(),
    HunyuanDiT(),
    Flux(),
    Flux2(),
    Chroma(),
    FluxWithoutClip(),
    SD3(),
    AuraFlow(),
    QwenImage(),
    QwenImage21(),
    Lumina(),
    MingImage(),
    HiDream(),
    HiDreamO1(),
    Omnigen2(),
    HunyuanImage(),
    Krea2(),
    StableCascade(),
    MageFlow(),
    JoyImage(),
    Lens(),
    Ideogram4(),
    Boogu(),
    Ernie(),
    PixelDiT(),
    CosmosPredict2(),
    Anima(),
    Kandinsky5(),
    Kandinsky6(),
    Wan(),
    HunyuanVideo(),
    LTXV(),
    LTX2(),
    MiniMaxH3(),
    Mochi(),
    CogVideoX(),
    Cosmos1(),
)


class UnknownFamily(ValueError):
    """Attention of this kind of model cannot be recorded."""


def network_of(model: Any) -> nn.Module:
    """The network of a ComfyUI model (``BaseModel``), without the wrapper of a compiler."""
    network = model.diffusion_model
    return getattr(network, "_orig_mod", network)


def vae_scale(model: Any) -> int:
    """Image pixels per latent cell of a ComfyUI model."""
    return int(getattr(model.latent_format, "spacial_downscale_ratio", 8))


def temporal_compression(model: Any) -> int:
    """Decoded frames per latent frame of a ComfyUI model."""
    return int(getattr(model.latent_format, "temporal_downscale_ratio", 1))


def find_family(model: Any) -> Family:
    """The family of a ComfyUI model (``BaseModel``). Raises UnknownFamily for a model that cannot be recorded."""
    network = network_of(model)
    for family in FAMILIES:
        if family.matches(network):
            return family
    known = ", ".join(family.label for family in FAMILIES)
    raise UnknownFamily(
        f"Attention of {type(network).__name__} ({type(model).__name__}) cannot be recorded; "
        f"use a model of one of these families: {known}."
    )


def plan_of(model: Any) -> Plan:
    """The plan of a ComfyUI model (``BaseModel``). Raises UnknownFamily for a model that cannot be recorded."""
    return find_family(model).plan(network_of(model))
