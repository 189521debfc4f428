"""Flux.1 (dev, schnell, Fill, Kontext) and Chroma, which has its blocks: joint attention throughout.

The sequence is the tokens of T5, then the picture, then reference pictures (Kontext). Double blocks keep text and
picture apart but for the attention; in single blocks attention and MLP share one output projection.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..family import FLOW_NOISE, JOINT, TEXT_FIRST, Block, Family, Plan, Site, SpanRule, Support, alike

# Blocks of the real model; the paper (goca reference configs) has single block 8 as reference and double blocks 12 and
# 18 for propagation.
_DOUBLE, _SINGLE = 19, 38


class Flux(Family):
    name = "flux"
    label = "Flux.1 (dev, schnell, Fill, Kontext)"
    support = Support("Flux.1 dev, schnell, Fill, Kontext", "T5", "averaged", "of the paper")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.flux.model import Flux as Network

        if not isinstance(network, Network):
            return False
        # Flux.2 and LongCat-Image run on the same network with text of another layout: without pooled text of CLIP.
        text = network.vector_in is not None and getattr(network, "txt_norm", None) is None
        return text and not network.params.global_modulation

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size)


class Chroma(Family):
    name = "chroma"
    label = "Chroma"
    support = Support("Chroma", "T5", "averaged", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.chroma.model import Chroma as Network

        # Radiance, which paints pixels, is a subclass.
        return type(network) is Network

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size)


def plan_like_flux(network: Any, patch: int, spans: SpanRule = TEXT_FIRST) -> Plan:
    """The plan of a network that is made of Flux's blocks."""
    double = [
        Block(f"double.{number}", Site(block.num_heads, block.img_attn.qkv, block.img_attn.proj), None)
        for number, block in enumerate(network.double_blocks)
    ]
    # The output projection takes attention and MLP side by side, so heads cannot be told apart behind it.
    single = [
        Block(f"single.{number}", Site(block.num_heads, block.linear1, block.linear2, weighted=False), None)
        for number, block in enumerate(network.single_blocks)
    ]
    reference = single[alike(8, _SINGLE, len(single))] if single else double[len(double) // 2]
    spread = [double[alike(number, _DOUBLE, len(double))].name for number in (12, 18)] if double else [reference.name]
    return Plan(
        (*double, *single),
        reference.name,
        tuple(dict.fromkeys(spread)),
        JOINT,
        FLOW_NOISE,
        feature="attention" if single else "projected",
        patch=patch,
        spans=spans,
    )
