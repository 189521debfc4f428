"""Qwen-Image 2.1: the prompt is a causal prefix whose keys are computed once, and only the image's tokens ask.

So the sequence of the keys is the prompt and then the image; queries are the image's alone. Other calls at the same site
are the prefix's own. Reference images stand in the prompt, before its words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import Family, Plan, Site, Support, text_last
from .plans import joint_blocks, joint_plan


class QwenImage21(Family):
    name = "qwen-image-2.1"
    label = "Qwen-Image 2.1"
    support = Support(
        "Qwen-Image 2.1, with reference images too",
        "Qwen 3 VL",
        "averaged",
        "by analogy",
        since="0.37.0",
        described=True,
    )
    network_class = "comfy.ldm.qwen_image21.model.QwenImage21Transformer2DModel"

    def plan(self, network: Any) -> Plan:
        attentions = (block.attn for block in network.transformer_blocks)
        sites = (Site(attention.heads, attention.to_q, attention.to_out[0]) for attention in attentions)
        # The latent has a cell for each token.
        return replace(joint_plan(joint_blocks(sites), 1, text_last, "attention"), after_prefix=True)
