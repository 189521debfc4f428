"""Cosmos-Predict2 (images and videos) and Anima: self-attention, and cross-attention to T5's tokens.

Anima's text encoder is a language model, but the network gets one vector from it per T5 token.
"""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import CROSS_NOISE, cross_blocks, cross_plan


class CosmosPredict2(Family):
    name = "cosmos-predict2"
    label = "Cosmos-Predict2"
    support = Support("Cosmos-Predict2 text to image, image to video", "T5", "weighted", "by analogy")
    network_class = "comfy.ldm.cosmos.predict2.MiniTrainDIT"
    exact = True
    noise_level = CROSS_NOISE  # its sigmas are ratios of noise to signal

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.n_heads, attention.q_proj, attention.output_proj)

        blocks = cross_blocks((site(block.cross_attn), site(block.self_attn)) for block in network.blocks)
        return cross_plan(blocks, network.patch_spatial, self.noise_level, network.patch_temporal)


class Anima(CosmosPredict2):
    name = "anima"
    label = "Anima"
    support = Support("Anima", "T5", "weighted", "by analogy")
    network_class = "comfy.ldm.anima.model.Anima"
    exact = False
    noise_level = CROSS_NOISE / (1 + CROSS_NOISE)
