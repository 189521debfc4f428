"""LTX-Video and LTX-2: self-attention over all frames, and cross-attention to the prompt's tokens.

LTX-2 generates the sound too, from a latent of its own with blocks of its own. They are not recorded. Of the prompt it
makes one part for the video and one for the sound, each with learned tokens after the prompt's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
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
        plan = cross_plan(blocks, 1, frame_patch=1, references=lambda given: (0, _thinned(given)[1]))
        return replace(plan, guides=lambda given: _thinned(given)[0])


def _thinned(given: Mapping[str, Any]) -> tuple[int, int]:
    """Frames of guides that lack tokens, and the tokens that they have; zeros if all tokens are there.

    Guides of a lower resolution stand in the latent with gaps, which the mask marks with -1 and the network leaves out. A guide
    without gaps is made of whole frames after those of the video.
    """
    guides, mask = given.get("keyframe_idxs"), given.get("denoise_mask")
    if guides is None or mask is None or not guides.shape[2]:
        return 0, 0
    own = mask[0, 0].flatten()[-guides.shape[2] :]
    kept = int((own >= 0).sum())
    return (0, 0) if kept == own.numel() else (own.numel() // math.prod(mask.shape[-2:]), kept)


class LTX2(LTXV):
    name = "ltx2"
    label = "LTX-2"
    support = Support("LTX-2, 2.3, 2.5: the video", "Gemma 3*, Gemma 4*", "weighted", "by analogy")
    network_class = "comfy.ldm.lightricks.av_model.LTXAVModel"
