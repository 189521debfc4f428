"""Omnigen2 and the related Boogu-Image: one stream of the prompt's tokens, reference images, and then the image.

Earlier layers refine text or images alone and are not recorded. The first blocks of Boogu keep text and image separate;
besides the joint attention they have self-attention of the image, which is not recorded either.
"""

from __future__ import annotations

from typing import Any

from .base import Block, Family, Plan, Site, Support, counted_references
from .plans import joint_blocks, joint_plan


class Omnigen2(Family):
    name = "omnigen2"
    label = "Omnigen2"
    support = Support("Omnigen2, with reference images too", "Qwen 2.5", "averaged", "by analogy")
    network_class = "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel"

    def blocks(self, network: Any) -> list[Block]:
        return _layers("layer", network.layers)

    def plan(self, network: Any) -> Plan:
        patch = network.patch_size
        references = counted_references(patch, before=True)
        return joint_plan(self.blocks(network), patch, feature="attention", references=references)


class Boogu(Omnigen2):
    name = "boogu"
    label = "Boogu-Image"
    support = Support("Boogu-Image, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")
    network_class = "comfy.ldm.boogu.model.BooguTransformer2DModel"

    def blocks(self, network: Any) -> list[Block]:
        # A second projection follows, so the first alone does not give the contribution of a head.
        attentions = (layer.img_instruct_attn for layer in network.double_stream_layers)
        double = (
            Site(attention.heads, attention.processor.img_to_q, attention.processor.img_out, weighted=False)
            for attention in attentions
        )
        return [*joint_blocks(double, "double"), *_layers("single", network.single_stream_layers)]


def _layers(name: str, layers: Any) -> list[Block]:
    return joint_blocks((Site(layer.attn.heads, layer.attn.to_q, layer.attn.to_out[0]) for layer in layers), name)
