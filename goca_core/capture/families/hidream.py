"""HiDream-I1: joint attention over the image, T5's tokens, and Llama's tokens twice (from its last and another layer).

Its variant for edits, HiDream-E1, has the image that is edited beside the new one, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import Block, Family, Plan, Site, Support, image_first
from .plans import joint_blocks, joint_plan


class HiDream(Family):
    name = "hidream"
    label = "HiDream-I1"
    support = Support("HiDream-I1 full, dev, fast, HiDream-E1", "T5 and Llama 3", "averaged", "by analogy")
    added_text = (("conditioning_llama3", 2),)
    network_class = "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel"

    def plan(self, network: Any) -> Plan:
        def blocks(stream: str, layers: Any) -> list[Block]:
            attentions = (layer.block.attn1 for layer in layers)
            return joint_blocks((Site(each.heads, each.to_q, each.to_out) for each in attentions), stream)

        double, single = blocks("double", network.double_stream_blocks), blocks("single", network.single_stream_blocks)
        return replace(joint_plan([*double, *single], network.patch_size, image_first), beside=_edited)


def _edited(given: Mapping[str, Any]) -> int:
    image = given.get("image_cond")
    return 0 if image is None else int(image.shape[-1])
