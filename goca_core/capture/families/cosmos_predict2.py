"""Cosmos-Predict2 (images and videos) and Anima: self-attention, and cross-attention to T5's tokens.

Anima's text encoder is a language model, but the network gets one vector from it per T5 token.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import CROSS_NOISE, cross_plan


class CosmosPredict2(Family):
    name = "cosmos-predict2"
    label = "Cosmos-Predict2"
    support = Support("Cosmos-Predict2 text to image, image to video", "T5", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.cosmos.predict2 import MiniTrainDIT

        return type(network) is MiniTrainDIT

    def plan(self, network: Any) -> Plan:
        # Its sigmas are ratios of noise to signal.
        return _plan(network, CROSS_NOISE)


class Anima(Family):
    name = "anima"
    label = "Anima"
    support = Support("Anima", "T5", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.anima.model import Anima as Network

        return isinstance(network, Network)

    def plan(self, network: Any) -> Plan:
        return _plan(network, CROSS_NOISE / (1 + CROSS_NOISE))


def _plan(network: Any, noise_level: float) -> Plan:
    def site(attention: Any) -> Site:
        return Site(attention.n_heads, attention.q_proj, attention.output_proj)

    blocks = [
        Block(f"block.{number}", site(block.cross_attn), site(block.self_attn))
        for number, block in enumerate(network.blocks)
    ]
    return cross_plan(blocks, network.patch_spatial, noise_level, network.patch_temporal)
