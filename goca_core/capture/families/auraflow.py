"""AuraFlow: joint attention over eight learned tokens, T5's tokens, and the image; four double and 32 single layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, text_first
from .plans import joint_plan


class AuraFlow(Family):
    name = "auraflow"
    label = "AuraFlow"
    support = Support("AuraFlow", "T5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.aura.mmdit import MMDiT

        return isinstance(network, MMDiT)

    def plan(self, network: Any) -> Plan:
        double = [
            Block(f"double.{number}", Site(layer.attn.n_heads, layer.attn.w2q, layer.attn.w2o), None)
            for number, layer in enumerate(network.double_layers)
        ]
        single = [
            Block(f"single.{number}", Site(layer.attn.n_heads, layer.attn.w1q, layer.attn.w1o), None)
            for number, layer in enumerate(network.single_layers)
        ]
        return joint_plan([*double, *single], network.patch_size, text_first(network.register_tokens.shape[1]))
