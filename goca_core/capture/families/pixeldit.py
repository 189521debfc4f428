"""PixelDiT: joint attention over the prompt and patches of pixels. Later layers look at the pixels alone and are not recorded."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import joint_blocks, joint_plan


class PixelDiT(Family):
    name = "pixeldit"
    label = "PixelDiT"
    support = Support("PixelDiT", "Gemma*", "averaged", "by analogy")
    network_class = "comfy.ldm.pixeldit.model.PixDiT_T2I"
    exact = True  # its subclass makes a large image of a small one

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.patch_blocks)
        sites = (Site(attention.num_heads, attention.qkv_x, attention.proj_x) for attention in attentions)
        return joint_plan(joint_blocks(sites), network.patch_size)
