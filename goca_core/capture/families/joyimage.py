"""JoyImage: joint attention over the image, reference images, and the prompt's tokens."""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support, counted_references, image_first
from .plans import joint_blocks, joint_plan


class JoyImage(Family):
    name = "joyimage"
    label = "JoyImage"
    support = Support("JoyImage, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")
    network_class = "comfy.ldm.joyimage.model.JoyImageTransformer3DModel"

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.double_blocks)
        sites = (Site(each.num_attention_heads, each.img_attn_qkv, each.img_attn_proj) for each in attentions)
        patch = network.patch_size[-1]
        references = counted_references(patch, before=False)
        return joint_plan(joint_blocks(sites), patch, image_first, references=references)
