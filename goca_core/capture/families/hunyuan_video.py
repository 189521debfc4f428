"""HunyuanVideo 1 and 1.5: Flux's blocks over the prompt's tokens and the tokens of all frames.

In version 1.5 the tokens of the start image and of quoted text come before those of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import TEXT_FIRST, Family, Plan, Support, count_tokens, text_last
from .flux import plan_like_flux


class HunyuanVideo(Family):
    name = "hunyuan-video"
    label = "HunyuanVideo 1 and 1.5"
    support = Support(
        "HunyuanVideo 1, 1.5: text to video, image to video", "Llama 3, Qwen 2.5", "averaged", "by analogy"
    )
    network_class = "comfy.ldm.hunyuan_video.model.HunyuanVideo"
    added_text = (("conditioning_byt5small", 1),)

    def matches(self, network: Any) -> bool:
        # HunyuanImage uses the same network with two-dimensional patches.
        return super().matches(network) and len(network.patch_size) == 3

    def plan(self, network: Any) -> Plan:
        def references(given: Mapping[str, Any]) -> tuple[int, int]:
            latent = given.get("ref_latent")
            return (0 if latent is None else count_tokens(latent.shape[-3:], network.patch_size)), 0

        mixed = network.vision_in is not None or network.byt5_in is not None
        plan = plan_like_flux(network, network.patch_size[-1], text_last if mixed else TEXT_FIRST)
        return replace(plan, frame_patch=network.patch_size[0], references=references)
