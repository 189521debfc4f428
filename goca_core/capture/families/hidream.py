"""HiDream-I1: joint attention over the image, T5's tokens, and Llama's tokens twice (from its last and another layer)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from .base import Block, Family, Plan, Site, Support, image_first, is_a
from .plans import joint_plan


class HiDream(Family):
    name = "hidream"
    label = "HiDream-I1"
    support = Support("HiDream-I1 full, dev, fast", "T5 and Llama 3", "averaged", "by analogy")
    added_text: ClassVar[Mapping[str, int]] = {"conditioning_llama3": 2}

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel")

    def plan(self, network: Any) -> Plan:
        blocks = []
        streams = {"double": network.double_stream_blocks, "single": network.single_stream_blocks}
        for stream, layers in streams.items():
            for number, layer in enumerate(layers):
                attention = layer.block.attn1
                blocks.append(
                    Block(f"{stream}.{number}", Site(attention.heads, attention.to_q, attention.to_out), None)
                )
        return joint_plan(blocks, network.patch_size, image_first)
