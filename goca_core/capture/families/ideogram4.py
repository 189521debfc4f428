"""Ideogram 4: a single stream of the prompt's tokens and the image; each latent cell is a token."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import joint_blocks, joint_plan


class Ideogram4(Family):
    name = "ideogram4"
    label = "Ideogram 4"
    support = Support("Ideogram 4", "Qwen 3 VL", "averaged", "by analogy")
    network_class = "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel"

    def plan(self, network: Any) -> Plan:
        attentions = (layer.attention for layer in network.layers)
        sites = (Site(attention.num_heads, attention.qkv, attention.o) for attention in attentions)
        return joint_plan(joint_blocks(sites, "layer"), 1, feature="attention")
