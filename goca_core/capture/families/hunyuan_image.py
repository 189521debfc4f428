"""HunyuanImage 2.1: Flux's blocks over the prompt's tokens, the tokens of quoted text (ByT5), and the image."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Support
from .flux import plan_like_flux


class HunyuanImage(Family):
    name = "hunyuan-image"
    label = "HunyuanImage 2.1"
    support = Support("HunyuanImage 2.1", "Qwen 2.5 and ByT5", "averaged", "by analogy")
    network_class = "comfy.ldm.hunyuan_video.model.HunyuanVideo"
    added_text = (("conditioning_byt5small", 1),)

    def matches(self, network: Any) -> bool:
        # The patches of the video models and of the refiner have a third axis, time.
        return super().matches(network) and len(network.patch_size) == 2

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size[0])
