"""Ideogram 4: a single stream of the prompt's tokens and the image; each latent cell is a token."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, is_a
from .plans import joint_plan


class Ideogram4(Family):
    name = "ideogram4"
    label = "Ideogram 4"
    support = Support("Ideogram 4", "Qwen 3 VL", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel")

    def plan(self, network: Any) -> Plan:
        blocks = [
            Block(f"layer.{number}", Site(layer.attention.num_heads, layer.attention.qkv, layer.attention.o), None)
            for number, layer in enumerate(network.layers)
        ]
        return joint_plan(blocks, 1, feature="attention")
