"""Kandinsky 5 (images and videos): self-attention, and cross-attention to Qwen 2.5's tokens.

The text first passes layers of its own, which are not recorded.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import cross_plan


class Kandinsky5(Family):
    name = "kandinsky5"
    label = "Kandinsky 5"
    support = Support("Kandinsky 5 Image and Video", "Qwen 2.5", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.kandinsky5.model import Kandinsky5 as Network

        return isinstance(network, Network)

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.to_query, attention.out_layer)

        blocks = [
            Block(f"block.{number}", site(block.cross_attention), site(block.self_attention))
            for number, block in enumerate(network.visual_transformer_blocks)
        ]
        return cross_plan(blocks, network.patch_size[-1], frame_patch=network.patch_size[0])
