"""Wan 2.1 and 2.2, with the models built on them: self-attention over all frames, and cross-attention to umT5's tokens.

Image-to-video models attend to the tokens of CLIP vision first and to the text after that, between the same two
projections, and add the two outputs. The second call is the one that is kept; its heads are weighted by its own output.

Animate 2 runs each block for the driving video first, of which the other video's frames attend to one each. It has the
reference image as its first frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Family, Plan, References, Site, Support, count_tokens
from .plans import cross_blocks, cross_plan

_Patch = tuple[int, int, int]
# The past frames that Speech to Video remembers: how many there are of each patch size.
_MOTION: tuple[tuple[int, _Patch], ...] = ((1, (1, 2, 2)), (2, (2, 4, 4)), (16, (4, 8, 8)))


class Wan(Family):
    name = "wan"
    label = "Wan 2.1 and 2.2"
    support = Support(
        "Wan 2.1, 2.2: text to video, image to video, Fun Control, Fun Camera, Vace, Animate, HuMo, Speech to Video, SCAIL, "
        "Dancer, Animate 2",
        "umT5*",
        "weighted",
        "by analogy",
    )
    network_class = "comfy.ldm.wan.model.WanModel"

    def matches(self, network: Any) -> bool:
        # Of a class that is not known, nobody knows what is in its sequence.
        return super().matches(network) and type(network).__qualname__ in _REFERENCES

    def plan(self, network: Any) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.q, attention.o, framewise=hasattr(attention, "forward_gen"))

        blocks = cross_blocks((site(block.cross_attn), site(block.self_attn)) for block in network.blocks)
        patch = tuple(network.patch_size)
        references = _REFERENCES[type(network).__qualname__](network, patch)
        return cross_plan(blocks, patch[-1], frame_patch=patch[0], references=references)


def _whole(size: Sequence[int], patch: Sequence[int]) -> int:
    """Tokens of a latent that is not padded to whole patches."""
    return math.prod(side // step for side, step in zip(size, patch, strict=True))


def _around(network: Any, patch: _Patch) -> References:
    """The reference image of Fun Control comes first, others last (Phantom: as more frames; Bernini)."""

    def count(given: Mapping[str, Any]) -> tuple[int, int]:
        first = given.get("reference_latent") if network.ref_conv is not None else None
        before = 0 if first is None else _whole(first.shape[-2:], patch[1:])
        more = [given["time_dim_concat"]] if given.get("time_dim_concat") is not None else []
        more += given.get("context_latents") or []
        return before, sum(count_tokens(latent.shape[-3:], patch) for latent in more)

    return count


def _behind(_network: Any, patch: _Patch) -> References:
    """The reference image comes last, and then the past frames, the further back the coarser."""

    def count(given: Mapping[str, Any]) -> tuple[int, int]:
        image, motion = given.get("reference_latent"), given.get("reference_motion")
        tokens = 0 if image is None else _whole(image.shape[-3:], patch)
        if motion is not None:
            tokens += sum(_whole((frames, *motion.shape[-2:]), coarse) for frames, coarse in _MOTION)
        return 0, tokens

    return count


def _before_and_behind(_network: Any, patch: _Patch) -> References:
    """The reference images come first, and last the poses."""

    def count(given: Mapping[str, Any]) -> tuple[int, int]:
        found = [given.get(name) for name in ("reference_latent", "pose_latents")]
        before, after = (0 if part is None else count_tokens(part.shape[-3:], patch) for part in found)
        return before, after

    return count


# Vace adds what blocks of its own make of the control video, Fun Camera its camera, Animate a pose and a face, HuMo, Speech to
# Video and Dancer a sound: all of them to the tokens that are there.
_REFERENCES = {
    **dict.fromkeys(
        (
            "WanModel", "VaceWanModel", "CameraWanModel", "AnimateWanModel", "WanAnimate2Model", "WanDancerModel",
            "CausalWanModel",
        ),
        _around,
    ),
    **dict.fromkeys(("HumoWanModel", "WanModel_S2V"), _behind),
    **dict.fromkeys(("SCAILWanModel", "SCAIL2WanModel"), _before_and_behind),
}  # fmt: skip
