"""HiDream-I1: joint attention over the image, T5's tokens, and Llama's tokens twice (from its last and another layer)."""

from __future__ import annotations

from typing import Any

from .base import Block, Family, Plan, Site, Support, image_first
from .plans import joint_blocks, joint_plan


class HiDream(Family):
    name = "hidream"
    label = "HiDream-I1"
    support = Support("HiDream-I1 full, dev, fast", "T5 and Llama 3", "averaged", "by analogy")
    added_text = (("conditioning_llama3", 2),)
    network_class = "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel"

    def plan(self, network: Any) -> Plan:
        def blocks(stream: str, layers: Any) -> list[Block]:
            attentions = (layer.block.attn1 for layer in layers)
            return joint_blocks((Site(each.heads, each.to_q, each.to_out) for each in attentions), stream)

        double, single = blocks("double", network.double_stream_blocks), blocks("single", network.single_stream_blocks)
        return joint_plan([*double, *single], network.patch_size, image_first)
