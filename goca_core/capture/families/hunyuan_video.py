"""HunyuanVideo 1 and 1.5: Flux's blocks over the prompt's tokens and the tokens of all frames.

In version 1.5 the tokens of the start image and of quoted text come before those of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from .base import TEXT_FIRST, Family, JointSpans, Plan, Support
from .flux import plan_like_flux


class HunyuanVideo(Family):
    name = "hunyuan-video"
    label = "HunyuanVideo 1 and 1.5"
    support = Support(
        "HunyuanVideo 1, 1.5: text to video, image to video", "Llama 3, Qwen 2.5", "averaged", "by analogy"
    )
    added_text: ClassVar[Mapping[str, int]] = {"conditioning_byt5small": 1}

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.hunyuan_video.model import HunyuanVideo as Network

        # HunyuanImage uses the same network with two-dimensional patches.
        return isinstance(network, Network) and len(network.patch_size) == 3

    def plan(self, network: Any) -> Plan:
        def references(given: Mapping[str, Any]) -> tuple[int, int]:
            latent = given.get("ref_latent")
            if latent is None:
                return 0, 0
            return math.prod(
                -(-side // step) for side, step in zip(latent.shape[-3:], network.patch_size, strict=True)
            ), 0

        mixed = network.vision_in is not None or network.byt5_in is not None
        plan = plan_like_flux(network, network.patch_size[-1], _text_last if mixed else TEXT_FIRST)
        return replace(plan, frame_patch=network.patch_size[0], references=references)


def _text_last(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """[tokens that are not the prompt's, text, image, references]"""
    start = total - references - image
    return JointSpans(slice(start - text, start), slice(start, start + image)) if start >= text else None
