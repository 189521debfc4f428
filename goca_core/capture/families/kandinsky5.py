"""Kandinsky 5 (images and videos): self-attention, and cross-attention to Qwen 2.5's tokens.

The text first passes layers of its own, which are not recorded.
"""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import cross_blocks, cross_plan


class Kandinsky5(Family):
    name = "kandinsky5"
    label = "Kandinsky 5"
    support = Support("Kandinsky 5 Image and Video", "Qwen 2.5", "weighted", "by analogy")
    network_class = "comfy.ldm.kandinsky5.model.Kandinsky5"

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.to_query, attention.out_layer)

        layers = network.visual_transformer_blocks
        blocks = cross_blocks((site(layer.cross_attention), site(layer.self_attention)) for layer in layers)
        return cross_plan(blocks, network.patch_size[-1], frame_patch=network.patch_size[0])
