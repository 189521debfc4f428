"""Hunyuan-DiT: cross-attention to BERT's tokens, followed by mT5's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import Family, Plan, Site, Support
from .plans import JOINT, cross_blocks, index_at_depth, slice_at_depth

# The paper (goca reference configs) records only blocks 20 to 29 of 40, uses all of them for propagation, and block 25
# as reference.
_DEPTH = 40
# Sigma at the timestep of the paper's settings.
_NOISE = 0.327


class HunyuanDiT(Family):
    name = "hunyuan-dit"
    label = "Hunyuan-DiT"
    support = Support("Hunyuan-DiT 1.1 and 1.2", "BERT and mT5*", "averaged", "from the paper", "cross-attention")
    added_text = (("conditioning_mt5xl", 1),)
    network_class = "comfy.ldm.hydit.models.HunYuanDiT"

    def plan(self, network: Any) -> Plan:
        depth = len(network.blocks)
        used = slice_at_depth(20, 30, _DEPTH, depth)
        pairs = (
            (
                Site(block.attn2.num_heads, block.attn2.q_proj, block.attn2.out_proj),
                Site(block.attn1.num_heads, block.attn1.Wqkv, block.attn1.out_proj),
            )
            for block in network.blocks[used]
        )
        blocks = cross_blocks(pairs, used.start)
        names = tuple(block.name for block in blocks)
        reference = f"block.{index_at_depth(25, _DEPTH, depth)}"
        # The feature is the query projection before its norm and rotary embedding.
        return Plan(
            tuple(blocks), reference, names, replace(JOINT, propagation_steps=4), _NOISE, patch=network.patch_size
        )
