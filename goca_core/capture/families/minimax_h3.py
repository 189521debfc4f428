"""MiniMax-H3 (videos with sound, and images): one stream of the prompt, keyframes or references, the sound, and the video.

The sequence has no batch axis. Earlier layers refine the prompt alone and are not recorded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import Family, JointSpans, Plan, Site, Support
from .plans import joint_blocks, joint_plan

# Latent frames of which the first is decoded to one frame, the others to four.
_GROUP = 5


class MiniMaxH3(Family):
    name = "minimax-h3"
    label = "MiniMax-H3"
    support = Support("MiniMax-H3: the video", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")
    network_class = "comfy.ldm.minimax.model.MiniMaxH3Model"
    with_sound = True

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.blocks)
        sites = (
            Site(attention.heads, attention.qkv_proj, attention.out_proj, around=attention) for attention in attentions
        )
        patch = network.patch_size
        plan = joint_plan(joint_blocks(sites), patch[-1], _at_both_ends, "attention", frame_patch=patch[0])
        return replace(plan, frame_group=_GROUP)


def _at_both_ends(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """[text, keyframes, references and sound, image]"""
    start = total - image
    return JointSpans(slice(0, text), slice(start, total)) if start >= text and not references else None
