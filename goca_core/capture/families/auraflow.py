"""AuraFlow: joint attention over eight learned tokens, those of T5, and the picture; four double and 32 single layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..family import FLOW_NOISE, JOINT, Block, Family, Plan, Site, Support, by_depth, text_first


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
        blocks = (*double, *single)
        reference, middle = by_depth([block.name for block in blocks])
        return Plan(
            blocks,
            reference,
            middle,
            JOINT,
            FLOW_NOISE,
            # Before the projection in a single layer, as in Flux: behind it text and picture are one.
            feature="attention" if reference.startswith("single") else "projected",
            patch=network.patch_size,
            spans=text_first(network.register_tokens.shape[1]),
        )
