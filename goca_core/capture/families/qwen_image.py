"""Qwen-Image, its editing variants, and Mage-Flow, which uses its blocks: joint attention over prompt, image and reference
images."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, is_a
from .plans import joint_plan


class QwenImage(Family):
    name = "qwen-image"
    label = "Qwen-Image"
    support = Support("Qwen-Image, with reference images too", "Qwen 2.5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

        return type(network) is QwenImageTransformer2DModel

    def plan(self, network: Any) -> Plan:
        blocks = tuple(
            Block(f"block.{number}", Site(block.attn.heads, block.attn.to_q, block.attn.to_out[0]), None)
            for number, block in enumerate(network.transformer_blocks)
        )
        return joint_plan(blocks, network.patch_size)


class MageFlow(QwenImage):
    name = "mage-flow"
    label = "Mage-Flow"
    support = Support("Mage-Flow, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel")
