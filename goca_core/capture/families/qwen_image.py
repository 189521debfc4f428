"""Qwen-Image, its editing variants, and Mage-Flow, which uses its blocks: joint attention over prompt, image and reference
images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import Family, Plan, Site, Support
from .plans import joint_blocks, joint_plan


class QwenImage(Family):
    name = "qwen-image"
    label = "Qwen-Image"
    support = Support("Qwen-Image, with reference images too, and its layers", "Qwen 2.5", "averaged", "by analogy")
    network_class = "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel"
    exact = True

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.transformer_blocks)
        sites = (Site(attention.heads, attention.to_q, attention.to_out[0]) for attention in attentions)
        # Several frames are the layers of one image, each decoded by itself.
        return replace(joint_plan(joint_blocks(sites), network.patch_size, frame_patch=1), frame_group=1)


class MageFlow(QwenImage):
    name = "mage-flow"
    label = "Mage-Flow"
    support = Support("Mage-Flow, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")
    network_class = "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel"
    exact = False
