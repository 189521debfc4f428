"""LTX-Video: self-attention over all frames, and cross-attention to T5's tokens."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import cross_blocks, cross_plan


class LTXV(Family):
    name = "ltxv"
    label = "LTX-Video"
    support = Support("LTX-Video 0.9", "T5", "weighted", "by analogy")
    network_class = "comfy.ldm.lightricks.model.LTXVModel"
    exact = True  # LTX-2 also generates sound, so its latent has another format

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.heads, attention.to_q, attention.to_out[0])

        blocks = cross_blocks((site(block.attn2), site(block.attn1)) for block in network.transformer_blocks)
        return cross_plan(blocks, 1, frame_patch=1)
