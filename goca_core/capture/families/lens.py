"""Lens: joint attention over the image and then the prompt's tokens; each latent cell is a token."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, image_first, is_a
from .plans import joint_plan


class Lens(Family):
    name = "lens"
    label = "Lens"
    support = Support("Lens", "GPT-OSS*", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.lens.model.LensTransformer2DModel")

    def plan(self, network: Any) -> Plan:
        blocks = [
            Block(f"block.{number}", Site(block.attn.heads, block.attn.img_qkv, block.attn.to_out[0]), None)
            for number, block in enumerate(network.transformer_blocks)
        ]
        return joint_plan(blocks, 1, image_first)
