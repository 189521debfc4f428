"""HunyuanImage 2.1: Flux's blocks over the prompt's tokens, the tokens of quoted text (ByT5), and the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from .base import Family, Plan, Support
from .flux import plan_like_flux


class HunyuanImage(Family):
    name = "hunyuan-image"
    label = "HunyuanImage 2.1"
    support = Support("HunyuanImage 2.1", "Qwen 2.5 and ByT5", "averaged", "by analogy")
    added_text: ClassVar[Mapping[str, int]] = {"conditioning_byt5small": 1}

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.hunyuan_video.model import HunyuanVideo

        # The patches of the video models and of the refiner have a third axis, time.
        return isinstance(network, HunyuanVideo) and len(network.patch_size) == 2

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size[0])
