"""Krea 2: a single stream of the prompt's tokens, the image, and reference images."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import joint_blocks, joint_plan


class Krea2(Family):
    name = "krea2"
    label = "Krea 2"
    support = Support("Krea 2, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")
    network_class = "comfy.ldm.krea2.model.SingleStreamDiT"

    def plan(self, network: Any) -> Plan:
        # A gate follows the attention, so the projection alone does not give the contribution of a head.
        attentions = (block.attn for block in network.blocks)
        sites = (Site(attention.heads, attention.wq, attention.wo, weighted=False) for attention in attentions)
        return joint_plan(joint_blocks(sites, "layer"), network.patch, feature="attention")
