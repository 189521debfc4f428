"""HiDream-O1: a language model that generates pixels. The prompt is a causal prefix; the image and reference images ask.

The last token of the prompt stands for the time and asks with them. What reference images look like to the language model stands in
the prompt, before its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import Family, Plan, Site, Support, text_last
from .plans import joint_blocks, joint_plan


class HiDreamO1(Family):
    name = "hidream-o1"
    label = "HiDream-O1"
    support = Support("HiDream-O1, with reference images too", "Qwen 3 VL", "averaged", "by analogy")
    network_class = "comfy.ldm.hidream_o1.model.HiDreamO1Transformer"

    def plan(self, network: Any) -> Plan:
        def references(given: Mapping[str, Any]) -> tuple[int, int]:
            patches = given.get("ref_patches")
            return 0, 0 if patches is None else int(patches.shape[1])

        attentions = (layer.self_attn for layer in network.language_model.layers)
        sites = (Site(attention.num_heads, attention.q_proj, attention.o_proj) for attention in attentions)
        blocks = joint_blocks(sites, "layer")
        plan = joint_plan(blocks, network.patch_size, text_last, "attention", references=references)
        return replace(plan, after_prefix=True)
