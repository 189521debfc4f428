"""Stable Cascade, stage C: one attention call from the image to itself and to the text.

The keys are the image, CLIP's tokens, and vectors computed from the pooled text and from images. Stage B gets only the
pooled text, so it has no attention to words.
"""

from __future__ import annotations

from typing import Any

from .base import Block, Family, JointSpans, Plan, Site, SpanRule, Support
from .plans import FLOW_NOISE_RATIO, joint_blocks, joint_plan


class StableCascade(Family):
    name = "stable-cascade"
    label = "Stable Cascade (stage C)"
    support = Support("Stable Cascade, stage C", "CLIP", "averaged", "by analogy", "cross-attention")
    network_class = "comfy.ldm.cascade.stage_c.StageC"

    def plan(self, network: Any) -> Plan:
        from comfy.ldm.cascade.common import AttnBlock

        blocks: list[Block] = []
        for way, levels in (("down", network.down_blocks), ("up", network.up_blocks)):
            for level, layers in enumerate(levels):
                found = (layer.attention.attn for layer in layers if isinstance(layer, AttnBlock))
                sites = (Site(attention.heads, attention.to_q, attention.out_proj) for attention in found)
                blocks += joint_blocks(sites, f"{way}.{level}")
        patch = network.embedding[0].downscale_factor
        return joint_plan(blocks, patch, _mixed(network.c_clip_seq), "attention", FLOW_NOISE_RATIO)


def _mixed(vectors: int) -> SpanRule:
    """``vectors``: number of keys for the pooled text, and for each image."""

    def rule(total: int, text: int, image: int, references: int) -> JointSpans | None:
        # ComfyUI repeats a short prompt that is batched with a longer one.
        for repeats in range((total - image) // text, 0, -1):
            rest = total - image - repeats * text
            if not references and rest >= 2 * vectors and rest % vectors == 0:
                return JointSpans(slice(image, image + repeats * text), slice(0, image))
        return None

    return rule
