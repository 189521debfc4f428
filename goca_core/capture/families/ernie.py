"""ERNIE-Image: a single stream of the image and then the prompt's tokens; no override sees its attention calls."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, image_first, is_a
from .plans import joint_plan


class Ernie(Family):
    name = "ernie"
    label = "ERNIE-Image"
    support = Support("ERNIE-Image", "Mistral*", "averaged", "by analogy")
    hidden = ("comfy.ldm.ernie.model",)

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.ernie.model.ErnieImageModel")

    def plan(self, network: Any) -> Plan:
        blocks = []
        for number, layer in enumerate(network.layers):
            attention = layer.self_attention
            blocks.append(Block(f"layer.{number}", Site(attention.heads, attention.to_q, attention.to_out[0]), None))
        return joint_plan(blocks, network.patch_size, image_first, "attention")
