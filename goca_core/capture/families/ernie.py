"""ERNIE-Image: a single stream of the image and then the prompt's tokens."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support, image_first
from .plans import joint_blocks, joint_plan


class Ernie(Family):
    name = "ernie"
    label = "ERNIE-Image"
    support = Support("ERNIE-Image", "Mistral*", "averaged", "by analogy")
    network_class = "comfy.ldm.ernie.model.ErnieImageModel"

    def plan(self, network: Any) -> Plan:
        attentions = (layer.self_attention for layer in network.layers)
        sites = (Site(attention.heads, attention.to_q, attention.to_out[0]) for attention in attentions)
        return joint_plan(joint_blocks(sites, "layer"), network.patch_size, image_first, "attention")
