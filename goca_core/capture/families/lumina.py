"""Lumina-Image 2, Z-Image and NewBie: a single stream of the prompt's tokens and then the image's.

Earlier layers refine text or image alone and are not recorded. Z-Image pads text and image, each at its end, to multiples
of 32 tokens.
"""

from __future__ import annotations

from typing import Any

from .base import Family, JointSpans, Plan, Site, SpanRule, Support
from .plans import joint_blocks, joint_plan


class Lumina(Family):
    name = "lumina"
    label = "Lumina-Image 2, Z-Image, NewBie"
    support = Support("Lumina-Image 2, Z-Image, NewBie", "Gemma*, Qwen 3", "averaged", "by analogy")
    network_class = "comfy.ldm.lumina.model.NextDiT"
    exact = True  # the variant that generates pixels instead of latents is a subclass

    def matches(self, network: Any) -> bool:
        # Ming-Image is this class too, with another sequence: learned queries, then the words, and layers as frames.
        return super().matches(network) and getattr(network, "__ming_image__", None) is None

    def plan(self, network: Any) -> Plan:
        # With int8 weights a kernel may compute norm, modulation and projection in one.
        sites = (
            Site(attention.n_local_heads, attention.qkv, attention.out, around=attention)
            for attention in (layer.attention for layer in network.layers)
        )
        spans = _padded(network.pad_tokens_multiple or 1)
        return joint_plan(joint_blocks(sites, "layer"), network.patch_size, spans, "attention")


def _padded(multiple: int) -> SpanRule:
    def rule(total: int, text: int, image: int, references: int) -> JointSpans | None:
        start = -(-text // multiple) * multiple
        if references or total != start + -(-image // multiple) * multiple:
            return None
        return JointSpans(slice(0, text), slice(start, start + image))

    return rule
