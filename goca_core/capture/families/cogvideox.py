"""CogVideoX 1 and 1.5: joint attention over T5's tokens and the tokens of all frames.

In version 1.5 a token spans two latent frames. ComfyUI repeats a short text to batch it with a longer one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .base import Block, Family, JointSpans, Plan, Site, Support
from .plans import FLOW_NOISE, joint_plan


class CogVideoX(Family):
    name = "cogvideox"
    label = "CogVideoX"
    support = Support("CogVideoX 1, 1.5: text to video, image to video", "T5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

        return isinstance(network, CogVideoXTransformer3DModel)

    def plan(self, network: Any) -> Plan:
        blocks = [
            Block(f"block.{number}", Site(block.num_heads, block.q, block.attn_out), None)
            for number, block in enumerate(network.blocks)
        ]
        # Text and image are still one sequence after the projection.
        plan = joint_plan(blocks, network.patch_size, _repeated, "attention")
        # Its sigmas are ratios of noise to signal.
        return replace(plan, frame_patch=network.patch_size_t or 1, noise_level=FLOW_NOISE / (1 - FLOW_NOISE))


def _repeated(total: int, text: int, image: int, references: int) -> JointSpans | None:
    start = total - image
    return None if references or start <= 0 or start % text else JointSpans(slice(0, start), slice(start, total))
