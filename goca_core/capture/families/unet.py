"""The UNets: SD1.x, SD2.x, SDXL and its refiner, SSD-1B, Segmind Vega, KOALA, inpaint and instruct variants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import CROSS

# Noise-to-signal ratio (sigma of k-diffusion) at the paper's timestep 100 of 1000 (goca reference configs).
_NOISE_SDXL, _NOISE_SD = 0.344, 0.346
# Reference layer and propagation layers, by name.
_Special = tuple[str, tuple[str, ...]]
# The reference implementation's layers, by ComfyUI's block numbers. SD1.x and 2.x share one layout of 16 blocks.
_SD: _Special = ("output.7.0", ("output.9.0", "output.10.0", "input.2.0"))
_SDXL: _Special = (
    "output.3.0",
    ("output.3.0", "output.3.1", "output.4.0", "output.4.1", "output.5.0", "input.4.0", "input.4.1"),
)


class UNet(Family):
    name = "unet"
    label = "UNet (SD1.x, SD2.x, SDXL, refiner, SSD-1B, Vega, KOALA)"
    support = Support(
        "SD 1.x, SD 2.x, SDXL, SDXL refiner, SSD-1B, Segmind Vega, KOALA, inpaint and instruct-pix2pix variants",
        "CLIP",
        "weighted",
        "from the paper",
    )
    network_class = "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel"

    def matches(self, network: nn.Module) -> bool:
        return super().matches(network) and next(_transformers(network), None) is not None

    def side(self, model: Any, network: nn.Module) -> int:
        from comfy.model_base import SDXL, SDXLRefiner

        return 1024 if isinstance(model, (SDXL, SDXLRefiner)) else 512

    def plan(self, network: nn.Module) -> Plan:
        blocks = tuple(
            Block(name, _site(module.attn2), _site(module.attn1), level)
            for name, level, module in _transformers(network)
        )
        names = {block.name for block in blocks}
        special = _SD if len(blocks) == 16 else _SDXL if len(blocks) == 70 else None
        if special is None or not {special[0], *special[1]} <= names:
            special = _by_analogy(blocks)
        noise = _NOISE_SD if min(block.level for block in blocks) == 0 else _NOISE_SDXL
        return Plan(blocks, *special, replace(CROSS, propagation_steps=2), noise)


def _site(attention: Any) -> Site:
    return Site(attention.heads, attention.to_q, attention.to_out[0], key=attention.to_k, value=attention.to_v)


def _transformers(network: Any) -> Iterator[tuple[str, int, Any]]:
    """(name, level, block) of every block with cross-attention, in the order in which they run."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

    level = 0
    sections = (("input", network.input_blocks), ("middle", [network.middle_block]), ("output", network.output_blocks))
    for section, sequences in sections:
        for index, sequence in enumerate(sequences or ()):
            for module in sequence or ():
                # Exactly this class: that of the video models attends to an image, not to text.
                if type(module) is SpatialTransformer:
                    for depth, block in enumerate(module.transformer_blocks):
                        if getattr(block, "attn2", None) is not None:
                            yield f"{section}.{index}.{depth}", level, block
                elif isinstance(module, Downsample):
                    level += 1
                elif isinstance(module, Upsample):
                    level -= 1


def _by_analogy(blocks: tuple[Block, ...]) -> _Special:
    """Reference and propagation layers for layouts that the paper does not cover.

    Both of the paper's reference layers are in the decoder at half the latent's resolution. Its propagation layers are
    those of the finest level: all in the decoder but the last, and one group of blocks in the encoder.
    """
    up = [block for block in blocks if block.name.startswith("output")] or list(blocks)
    level = 1 if any(block.level == 1 for block in up) else min(block.level for block in up)
    candidates = [block for block in up if block.level == level]
    # Of SD's three single blocks this takes the second, of SDXL's three double blocks the first of six.
    reference = (
        candidates[math.floor(len(candidates) / 2)] if all(b.name.endswith(".0") for b in candidates) else candidates[0]
    )
    finest = min(block.level for block in blocks)
    fine_up = [block.name for block in up if block.level == finest]
    fine_down = [block.name for block in blocks if block.level == finest and block.name.startswith("input")]
    down = [name for name in fine_down if name.split(".")[1] == fine_down[-1].split(".")[1]] if fine_down else []
    return reference.name, tuple((fine_up[:-1] or fine_up) + down)
