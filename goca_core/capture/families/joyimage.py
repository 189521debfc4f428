"""JoyImage: joint attention over the image, reference images, and the prompt's tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, counted_references, image_first, is_a
from .plans import joint_plan


class JoyImage(Family):
    name = "joyimage"
    label = "JoyImage"
    support = Support("JoyImage, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.joyimage.model.JoyImageTransformer3DModel")

    def plan(self, network: Any) -> Plan:
        blocks = []
        for number, block in enumerate(network.double_blocks):
            attention = block.attn
            site = Site(attention.num_attention_heads, attention.img_attn_qkv, attention.img_attn_proj)
            blocks.append(Block(f"block.{number}", site, None))
        patch = network.patch_size[-1]
        return joint_plan(blocks, patch, image_first, references=counted_references(patch, before=False))
