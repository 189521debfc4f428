"""PixArt-alpha and PixArt-Sigma: self-attention and cross-attention to T5's tokens in every block, at one resolution."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...attention.record import Defaults
from .base import Block, Family, Plan, Site, Support
from .plans import index_at_depth, slice_at_depth

# Blocks of the full-size models; the paper (goca reference configs) uses block 13 as reference and blocks 10 to 17 for
# propagation.
_DEPTH = 28
# Sigma at the paper's timestep 100 of the linear schedule.
_NOISE = 0.342


class PixArt(Family):
    name = "pixart"
    label = "PixArt (alpha, Sigma)"
    support = Support("PixArt-alpha, PixArt-Sigma", "T5", "weighted", "from the paper")
    hidden = ("comfy.ldm.pixart.blocks",)

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.pixart.pixartms import PixArtMS

        return isinstance(network, PixArtMS)

    def side(self, model: Any, network: Any) -> int:
        # The scale of its position embedding says which multiple of 512 it was trained for.
        return 512 * (network.pe_interpolation or 2)

    def plan(self, network: Any) -> Plan:
        blocks = tuple(
            Block(
                f"block.{number}",
                Site(block.cross_attn.num_heads, block.cross_attn.q_linear, block.cross_attn.proj),
                Site(block.attn.num_heads, block.attn.qkv, block.attn.proj),
            )
            for number, block in enumerate(network.blocks)
        )
        depth = len(blocks)
        defaults = Defaults(
            head="dot-product w/o clamp",
            layer="dot-product similarity",
            rescale="sum-1 rescaling + per-token renorm+",
            propagation_steps=5,
        )
        return Plan(
            blocks,
            blocks[index_at_depth(13, _DEPTH, depth)].name,
            tuple(block.name for block in blocks[slice_at_depth(10, 18, _DEPTH, depth)]),
            defaults,
            _NOISE,
            patch=network.patch_size,
        )
