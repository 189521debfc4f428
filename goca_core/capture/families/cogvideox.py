"""CogVideoX 1 and 1.5: joint attention over T5's tokens and the tokens of all frames.

In version 1.5 a token spans two latent frames. ComfyUI repeats a short text to batch it with a longer one.
"""

from __future__ import annotations

from typing import Any

from .base import Family, JointSpans, Plan, Site, Support
from .plans import FLOW_NOISE_RATIO, joint_blocks, joint_plan


class CogVideoX(Family):
    name = "cogvideox"
    label = "CogVideoX"
    support = Support("CogVideoX 1, 1.5: text to video, image to video", "T5", "averaged", "by analogy")
    network_class = "comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel"

    def plan(self, network: Any) -> Plan:
        blocks = joint_blocks(Site(block.num_heads, block.q, block.attn_out) for block in network.blocks)
        frame_patch = network.patch_size_t or 1
        # Text and image are still one sequence after the projection, so the feature is its input.
        return joint_plan(blocks, network.patch_size, _repeated, "attention", FLOW_NOISE_RATIO, frame_patch)


def _repeated(total: int, text: int, image: int, references: int) -> JointSpans | None:
    start = total - image
    return None if references or start <= 0 or start % text else JointSpans(slice(0, start), slice(start, total))
