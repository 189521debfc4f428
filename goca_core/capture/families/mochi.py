"""Mochi 1: joint attention over all frames and then T5's tokens without their padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .base import Block, Family, JointSpans, Plan, Site, Support
from .plans import joint_plan


class Mochi(Family):
    name = "mochi"
    label = "Mochi 1"
    support = Support("Mochi 1", "T5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

        return isinstance(network, AsymmDiTJoint)

    def plan(self, network: Any) -> Plan:
        blocks = [
            Block(f"block.{number}", Site(block.attn.num_heads, block.attn.qkv_x, block.attn.proj_x), None)
            for number, block in enumerate(network.blocks)
        ]
        return replace(joint_plan(blocks, network.patch_size, _without_padding), frame_patch=1)


def _without_padding(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """ComfyUI drops the padding after the last token of the text."""
    if references or not 0 < total - image <= text:
        return None
    return JointSpans(slice(image, total), slice(0, image))
