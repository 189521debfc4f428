"""AuraFlow: joint attention over eight learned tokens, T5's tokens, and the image; four double and 32 single layers."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support, text_first
from .plans import joint_blocks, joint_plan


class AuraFlow(Family):
    name = "auraflow"
    label = "AuraFlow"
    support = Support("AuraFlow", "T5", "averaged", "by analogy")
    network_class = "comfy.ldm.aura.mmdit.MMDiT"

    def plan(self, network: Any) -> Plan:
        double = (layer.attn for layer in network.double_layers)
        single = (layer.attn for layer in network.single_layers)
        blocks = [
            *joint_blocks((Site(attention.n_heads, attention.w2q, attention.w2o) for attention in double), "double"),
            *joint_blocks((Site(attention.n_heads, attention.w1q, attention.w1o) for attention in single), "single"),
        ]
        return joint_plan(blocks, network.patch_size, text_first(network.register_tokens.shape[1]))
