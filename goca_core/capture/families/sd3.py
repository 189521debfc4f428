"""Stable Diffusion 3 and 3.5: joint attention over CLIP's tokens, T5's tokens, and the image.

Some layers of 3.5 medium have self-attention of the image besides the joint attention; only the joint one is recorded.
"""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support, text_first
from .plans import joint_blocks, joint_plan


class SD3(Family):
    name = "sd3"
    label = "Stable Diffusion 3 and 3.5"
    support = Support("Stable Diffusion 3, 3.5 medium and large", "CLIP and T5", "averaged", "by analogy")
    network_class = "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"
    exact = True

    def plan(self, network: Any) -> Plan:
        attentions = (block.x_block.attn for block in network.joint_blocks)
        sites = (Site(attention.num_heads, attention.qkv, attention.proj) for attention in attentions)
        return joint_plan(joint_blocks(sites), network.patch_size, text_first(network.register_length))
