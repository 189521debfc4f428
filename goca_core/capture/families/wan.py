"""Wan 2.1 and 2.2: self-attention over all frames, and cross-attention to the tokens of umT5.

Models that start from a picture ask the tokens of CLIP's vision first and those of the text afterwards, between the
same two projections, and add the answers. The later call is the one that stays; what its heads are weighed by is its own
answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .base import Block, Family, Plan, Site, Support
from .plans import cross_plan


class Wan(Family):
    name = "wan"
    label = "Wan 2.1 and 2.2"
    support = Support("Wan 2.1, 2.2: text to video, image to video, Fun Control", "umT5*", "weighted", "by analogy")

    def matches(self, network: nn.Module) -> bool:
        from comfy.ldm.wan.model import WanModel

        # Subclasses have tokens of their own in the sequence (a driving film, a voice) or work on one piece after another.
        return type(network) is WanModel

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.q, attention.o)

        blocks = [
            Block(f"block.{number}", site(block.cross_attn), site(block.self_attn))
            for number, block in enumerate(network.blocks)
        ]
        patch = tuple(network.patch_size)

        def references(given: Mapping[str, Any]) -> tuple[int, int]:
            """A reference picture comes first (Fun Control), others behind (Phantom: as more frames; Bernini)."""
            first = given.get("reference_latent") if network.ref_conv is not None else None
            before = 0
            if first is not None:
                # That one is not filled up to whole patches.
                before = math.prod(side // step for side, step in zip(first.shape[-2:], patch[1:], strict=True))
            more = [given["time_dim_concat"]] if given.get("time_dim_concat") is not None else []
            more += given.get("context_latents") or []
            return before, sum(_tokens(latent.shape[-3:], patch) for latent in more)

        return cross_plan(blocks, patch[-1], frame_patch=patch[0], references=references)


def _tokens(size: Iterable[int], patch: Iterable[int]) -> int:
    return math.prod(-(-side // step) for side, step in zip(size, patch, strict=True))
