"""Lumina-Image 2, Z-Image, NewBie and Ming-Image: a single stream of the prompt's tokens and then the image's.

Earlier layers refine text or image alone and are not recorded. Z-Image pads text and image, each at its end, to multiples
of 32 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import Family, JointSpans, Plan, Site, SpanRule, Support, count_tokens
from .plans import joint_blocks, joint_plan


def _is_ming(network: Any) -> bool:
    """Ming-Image is of the same class as the others, and says so with a buffer."""
    return getattr(network, "__ming_image__", None) is not None


class Lumina(Family):
    name = "lumina"
    label = "Lumina-Image 2, Z-Image, NewBie"
    support = Support(
        "Lumina-Image 2, Z-Image, also in pixel space, NewBie", "Gemma*, Qwen 3", "averaged", "by analogy"
    )
    network_class = "comfy.ldm.lumina.model.NextDiT"

    def matches(self, network: Any) -> bool:
        return super().matches(network) and not _is_ming(network)

    def plan(self, network: Any) -> Plan:
        # With int8 weights a kernel may compute norm, modulation and projection in one.
        sites = (
            Site(attention.n_local_heads, attention.qkv, attention.out, around=attention)
            for attention in (layer.attention for layer in network.layers)
        )
        spans = _padded(network.pad_tokens_multiple or 1)
        return joint_plan(joint_blocks(sites, "layer"), network.patch_size, spans, "attention")


class MingImage(Lumina):
    """Its text is 256 learned tokens, which the text encoder fills, and then the prompt's own."""

    name = "ming-image"
    label = "Ming-Image"
    support = Support(
        "Ming-Image, with reference images too, and its layers",
        "Bailing",
        "averaged",
        "by analogy",
        since="0.38.0",
        described=True,
    )
    added_text = (("direct_context", 1),)

    def matches(self, network: Any) -> bool:
        return Family.matches(self, network) and _is_ming(network)

    def plan(self, network: Any) -> Plan:
        patch = network.patch_size

        def behind(given: Mapping[str, Any]) -> tuple[int, int]:
            frames = given.get("ref_frames") or ()
            return 0, sum(count_tokens(latent.shape[-2:], (patch, patch)) for latent in frames)

        # Several frames are the layers of one image, each decoded by itself.
        return replace(super().plan(network), frame_patch=1, frame_group=1, references=behind)


def _padded(multiple: int) -> SpanRule:
    def rule(total: int, text: int, image: int, references: int) -> JointSpans | None:
        start = -(-text // multiple) * multiple
        if total != start + -(-(image + references) // multiple) * multiple:
            return None
        return JointSpans(slice(0, text), slice(start, start + image))

    return rule
