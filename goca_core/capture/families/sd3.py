"""Stable Diffusion 3 and 3.5: joint attention over CLIP's tokens, T5's tokens, and the image.

Some layers of 3.5 medium have self-attention of the image besides the joint attention; only the joint one is recorded.
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
