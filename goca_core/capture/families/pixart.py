"""PixArt-alpha and PixArt-Sigma: self-attention and cross-attention to T5's tokens in every block, at one resolution."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import CROSS, CROSS_NOISE, cross_blocks, index_at_depth, slice_at_depth

# Blocks of the full-size models; the paper (goca reference configs) uses block 13 as reference and blocks 10 to 17 for
# propagation.
_DEPTH = 28


class PixArt(Family):
    name = "pixart"
    label = "PixArt (alpha, Sigma)"
    support = Support("PixArt-alpha, PixArt-Sigma", "T5", "weighted", "from the paper")
    network_class = "comfy.ldm.pixart.pixartms.PixArtMS"

    def side(self, model: Any, network: Any) -> int:
        # The scale of its position embedding says which multiple of 512 it was trained for.
        return 512 * (network.pe_interpolation or 2)

    def plan(self, network: Any) -> Plan:
        blocks = cross_blocks(
            (
                Site(block.cross_attn.num_heads, block.cross_attn.q_linear, block.cross_attn.proj),
                Site(block.attn.num_heads, block.attn.qkv, block.attn.proj),
            )
            for block in network.blocks
        )
        names, depth = [block.name for block in blocks], len(blocks)
        reference, middle = index_at_depth(13, _DEPTH, depth), slice_at_depth(10, 18, _DEPTH, depth)
        return Plan(tuple(blocks), names[reference], tuple(names[middle]), CROSS, CROSS_NOISE, patch=network.patch_size)
