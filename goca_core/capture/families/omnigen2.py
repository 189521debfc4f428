"""Omnigen2 and the related Boogu-Image: one stream of the prompt's tokens, reference images, and then the image.

Earlier layers refine text or images alone and are not recorded. The first blocks of Boogu keep text and image separate;
besides the joint attention they have self-attention of the image, which is not recorded either.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support, counted_references, is_a
from .plans import joint_plan


class Omnigen2(Family):
    name = "omnigen2"
    label = "Omnigen2"
    support = Support("Omnigen2, with reference images too", "Qwen 2.5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel")

    def plan(self, network: Any) -> Plan:
        return _plan(_layers("layer", network.layers), network.patch_size)


class Boogu(Family):
    name = "boogu"
    label = "Boogu-Image"
    support = Support("Boogu-Image, with reference images too", "Qwen 3 VL", "averaged", "by analogy", since="0.30.0")

    def matches(self, network: nn.Module) -> bool:
        return is_a(network, "comfy.ldm.boogu.model.BooguTransformer2DModel")

    def plan(self, network: Any) -> Plan:
        double = []
        for number, layer in enumerate(network.double_stream_layers):
            attention = layer.img_instruct_attn
            # A second projection follows, so the first alone does not give the contribution of a head.
            site = Site(attention.heads, attention.processor.img_to_q, attention.processor.img_out, weighted=False)
            double.append(Block(f"double.{number}", site, None))
        single = _layers("single", network.single_stream_layers)
        return _plan([*double, *single], network.patch_size)


def _layers(name: str, layers: Any) -> list[Block]:
    return [
        Block(f"{name}.{number}", Site(layer.attn.heads, layer.attn.to_q, layer.attn.to_out[0]), None)
        for number, layer in enumerate(layers)
    ]


def _plan(blocks: list[Block], patch: int) -> Plan:
    return joint_plan(blocks, patch, feature="attention", references=counted_references(patch, before=True))
