"""Krea 2: a single stream of the prompt's tokens, the image, and reference images."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, is_a
from .plans import joint_plan


class Krea2(Family):
    name = "krea2"
    label = "Krea 2"
    support = Support("Krea 2, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.krea2.model.SingleStreamDiT")

    def plan(self, network: Any) -> Plan:
        # A gate follows the attention, so the projection alone does not give the contribution of a head.
        blocks = [
            Block(f"layer.{number}", Site(block.attn.heads, block.attn.wq, block.attn.wo, weighted=False), None)
            for number, block in enumerate(network.blocks)
        ]
        return joint_plan(blocks, network.patch, feature="attention")
