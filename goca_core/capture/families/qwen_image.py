"""Qwen-Image and its editing variants: joint attention over the prompt, the picture, and reference pictures."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..family import FLOW_NOISE, JOINT, Block, Family, Plan, Site, Support, by_depth


class QwenImage(Family):
    name = "qwen-image"
    label = "Qwen-Image"
    support = Support("Qwen-Image, with reference pictures too", "Qwen 2.5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

        return type(network) is QwenImageTransformer2DModel

    def plan(self, network: Any) -> Plan:
        blocks = tuple(
            Block(f"block.{number}", Site(block.attn.heads, block.attn.to_q, block.attn.to_out[0]), None)
            for number, block in enumerate(network.transformer_blocks)
        )
        reference, middle = by_depth([block.name for block in blocks])
        return Plan(blocks, reference, middle, JOINT, FLOW_NOISE, feature="projected", patch=network.patch_size)
