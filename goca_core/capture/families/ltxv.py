"""LTX-Video: self-attention over all frames, and cross-attention to T5's tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import cross_plan


class LTXV(Family):
    name = "ltxv"
    label = "LTX-Video"
    support = Support("LTX-Video 0.9", "T5", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.lightricks.model import LTXVModel

        # LTX-2 also generates sound, so its latent has another format.
        return type(network) is LTXVModel

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.heads, attention.to_q, attention.to_out[0])

        blocks = [
            Block(f"block.{number}", site(block.attn2), site(block.attn1))
            for number, block in enumerate(network.transformer_blocks)
        ]
        return cross_plan(blocks, 1, frame_patch=1)
