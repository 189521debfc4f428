"""Cosmos 1: each block has self-attention over all frames, then cross-attention to T5's tokens."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import CROSS_NOISE, cross_blocks, cross_plan


class Cosmos1(Family):
    name = "cosmos1"
    label = "Cosmos 1"
    support = Support("Cosmos 1 text to video, image to video", "T5", "weighted", "by analogy")
    network_class = "comfy.ldm.cosmos.model.GeneralDIT"

    def plan(self, network: Any) -> Plan:
        pairs = []
        for block in network.blocks.values():
            sites = {}
            for part in block.blocks:
                attention = getattr(part.block, "attn", None)
                if attention is not None:
                    query, out = attention.to_q[0], attention.to_out[0]
                    sites[attention.is_selfattn] = Site(attention.heads, query, out, sequence_first=True)
            pairs.append((sites[False], sites[True]))
        # The standard deviation of its data is 0.5.
        return cross_plan(cross_blocks(pairs), network.patch_spatial, CROSS_NOISE * 0.5, network.patch_temporal)
