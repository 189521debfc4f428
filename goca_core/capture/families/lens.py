"""Lens: joint attention over the image and then the prompt's tokens; each latent cell is a token."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support, image_first
from .plans import joint_blocks, joint_plan


class Lens(Family):
    name = "lens"
    label = "Lens"
    support = Support("Lens", "GPT-OSS*", "averaged", "by analogy")
    network_class = "comfy.ldm.lens.model.LensTransformer2DModel"

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.transformer_blocks)
        sites = (Site(attention.heads, attention.img_qkv, attention.to_out[0]) for attention in attentions)
        return joint_plan(joint_blocks(sites), 1, image_first)
