"""Mochi 1: joint attention over all frames and then T5's tokens without their padding."""

from __future__ import annotations

from typing import Any

from .base import Family, JointSpans, Plan, Site, Support
from .plans import joint_blocks, joint_plan


class Mochi(Family):
    name = "mochi"
    label = "Mochi 1"
    support = Support("Mochi 1", "T5", "averaged", "by analogy")
    network_class = "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint"

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.blocks)
        sites = (Site(attention.num_heads, attention.qkv_x, attention.proj_x) for attention in attentions)
        return joint_plan(joint_blocks(sites), network.patch_size, _without_padding, frame_patch=1)


def _without_padding(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """ComfyUI drops the padding after the last token of the text."""
    if references or not 0 < total - image <= text:
        return None
    return JointSpans(slice(image, total), slice(0, image))
