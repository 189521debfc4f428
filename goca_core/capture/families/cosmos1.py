"""Cosmos 1: each block has self-attention over all frames, then cross-attention to T5's tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import CROSS_NOISE, cross_plan


class Cosmos1(Family):
    name = "cosmos1"
    label = "Cosmos 1"
    support = Support("Cosmos 1 text to video, image to video", "T5", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.cosmos.model import GeneralDIT

        return isinstance(network, GeneralDIT)

    def plan(self, network: Any) -> Plan:
        blocks = []
        for number, block in enumerate(network.blocks.values()):
            sites = {}
            for part in block.blocks:
                attention = getattr(part.block, "attn", None)
                if attention is not None:
                    query, out = attention.to_q[0], attention.to_out[0]
                    sites[attention.is_selfattn] = Site(attention.heads, query, out, sequence_first=True)
            blocks.append(Block(f"block.{number}", sites[False], sites[True]))
        # The standard deviation of its data is 0.5.
        return cross_plan(blocks, network.patch_spatial, CROSS_NOISE * 0.5, network.patch_temporal)
