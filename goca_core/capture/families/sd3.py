"""Stable Diffusion 3 and 3.5: joint attention over the tokens of CLIP, those of T5, and the picture.

3.5 medium has in some layers an attention of the picture to itself beside the joint one; what is recorded is the joint one.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, text_first
from .plans import joint_plan


class SD3(Family):
    name = "sd3"
    label = "Stable Diffusion 3 and 3.5"
    support = Support("Stable Diffusion 3, 3.5 medium and large", "CLIP and T5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

        return type(network) is OpenAISignatureMMDITWrapper

    def plan(self, network: Any) -> Plan:
        blocks = []
        for number, block in enumerate(network.joint_blocks):
            attention = block.x_block.attn
            blocks.append(Block(f"block.{number}", Site(attention.num_heads, attention.qkv, attention.proj), None))
        return joint_plan(blocks, network.patch_size, text_first(network.register_length))
