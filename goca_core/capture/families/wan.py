"""Wan 2.1 and 2.2, with Vace and Fun Camera: self-attention over all frames, and cross-attention to umT5's tokens.

Image-to-video models attend to the tokens of CLIP vision first and to the text after that, between the same two
projections, and add the two outputs. The second call is the one that is kept; its heads are weighted by its own output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .base import Family, Plan, Site, Support, count_tokens
from .plans import cross_blocks, cross_plan


class Wan(Family):
    name = "wan"
    label = "Wan 2.1 and 2.2"
    support = Support(
        "Wan 2.1, 2.2: text to video, image to video, Fun Control, Fun Camera, Vace", "umT5*", "weighted", "by analogy"
    )
    network_class = "comfy.ldm.wan.model.WanModel"

    def matches(self, network: Any) -> bool:
        # Vace adds what blocks of its own make of the control video, Fun Camera adds its camera to the first layer's input.
        # Other subclasses add tokens to the sequence (a driving video, a voice) or process it piece by piece.
        kind = type(network)
        return super().matches(network) and kind.__qualname__ in ("WanModel", "VaceWanModel", "CameraWanModel")

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.q, attention.o)

        blocks = cross_blocks((site(block.cross_attn), site(block.self_attn)) for block in network.blocks)
        patch = tuple(network.patch_size)

        def references(given: Mapping[str, Any]) -> tuple[int, int]:
            """The reference image of Fun Control comes first, others last (Phantom: as more frames; Bernini)."""
            first = given.get("reference_latent") if network.ref_conv is not None else None
            before = 0
            if first is not None:
                # This one is not padded to whole patches.
                before = math.prod(side // step for side, step in zip(first.shape[-2:], patch[1:], strict=True))
            more = [given["time_dim_concat"]] if given.get("time_dim_concat") is not None else []
            more += given.get("context_latents") or []
            return before, sum(count_tokens(latent.shape[-3:], patch) for latent in more)

        return cross_plan(blocks, patch[-1], frame_patch=patch[0], references=references)
