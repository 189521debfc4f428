"""LTX-Video and LTX-2: self-attention over all frames, and cross-attention to the prompt's tokens.

LTX-2 generates the sound too, from a latent of its own with blocks of its own. They are not recorded. Of the prompt it
makes one part for the video and one for the sound, each with learned tokens after the prompt's.
"""

from __future__ import annotations

from typing import Any

from .base import Family, Plan, Site, Support
from .plans import cross_blocks, cross_plan


class LTXV(Family):
    name = "ltxv"
    label = "LTX-Video"
    support = Support("LTX-Video 0.9", "T5", "weighted", "by analogy")
    network_class = "comfy.ldm.lightricks.model.LTXVModel"
    exact = True

    def plan(self, network: Any) -> Plan:
        def site(attention: Any, is_text: bool) -> Site:
            # Later versions weigh each head at each pixel.
            gated = is_text and getattr(attention, "to_gate_logits", None) is not None
            return Site(attention.heads, attention.to_q, attention.to_out[0], gated=gated)

        layers = network.transformer_blocks
        blocks = cross_blocks((site(block.attn2, True), site(block.attn1, False)) for block in layers)
        return cross_plan(blocks, 1, frame_patch=1)


class LTX2(LTXV):
    name = "ltx2"
    label = "LTX-2"
    support = Support("LTX-2, 2.3: the video", "Gemma 3*", "weighted", "by analogy")
    network_class = "comfy.ldm.lightricks.av_model.LTXAVModel"
