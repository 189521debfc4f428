"""Flux.1 (dev, schnell, Fill, Kontext) and models built from its blocks: joint attention in every block.

The sequence is the text, then the image, then reference images. Double blocks keep text and image separate except in the
attention; in single blocks attention and MLP share one output projection.
"""

from __future__ import annotations

from typing import Any, Literal

from .base import TEXT_FIRST, Family, JointSpans, Plan, Site, SpanRule, Support, text_first
from .plans import FLOW_NOISE, JOINT, index_at_depth, joint_blocks

# Blocks of the full-size model; the paper (goca reference configs) uses single block 8 as reference and double blocks 12
# and 18 for propagation.
_DOUBLE, _SINGLE = 19, 38
# Flux.2 gets at least this many text tokens: shorter texts are padded at the start.
_FLUX2_TEXT = 512


class _FluxNetwork(Family):
    network_class = "comfy.ldm.flux.model.Flux"

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size)


class Flux(_FluxNetwork):
    name = "flux"
    label = "Flux.1 (dev, schnell, Fill, Kontext)"
    support = Support("Flux.1 dev, schnell, Fill, Kontext", "T5", "averaged", "from the paper")

    def matches(self, network: Any) -> bool:
        # The other models on this network have no pooled text from CLIP.
        has_pooled = super().matches(network) and network.vector_in is not None
        return has_pooled and getattr(network, "txt_norm", None) is None


class Flux2(_FluxNetwork):
    name = "flux2"
    label = "Flux.2"
    support = Support("Flux.2 dev, Klein, with reference images too", "Mistral*, Qwen 3", "averaged", "by analogy")

    def matches(self, network: Any) -> bool:
        return super().matches(network) and bool(getattr(network.params, "global_modulation", False))

    def plan(self, network: Any) -> Plan:
        return plan_like_flux(network, network.patch_size, _padded_at_start)


class FluxWithoutClip(_FluxNetwork):
    """LongCat-Image and Ovis-Image."""

    name = "flux-without-clip"
    label = "LongCat-Image, Ovis-Image"
    support = Support("LongCat-Image, Ovis-Image", "Qwen 2.5, Qwen 3", "averaged", "by analogy")

    def matches(self, network: Any) -> bool:
        return super().matches(network) and not Flux().matches(network) and not Flux2().matches(network)


class Chroma(_FluxNetwork):
    """Chroma and its subclass Radiance, which generates pixels instead of latents."""

    name = "chroma"
    label = "Chroma"
    support = Support("Chroma, Chroma1-Radiance", "T5", "averaged", "by analogy")
    network_class = "comfy.ldm.chroma.model.Chroma"


def _padded_at_start(total: int, text: int, image: int, references: int) -> JointSpans | None:
    return text_first(max(0, _FLUX2_TEXT - text))(total, text, image, references)


def plan_like_flux(network: Any, patch: int, spans: SpanRule = TEXT_FIRST) -> Plan:
    """The plan of a network built from Flux's blocks."""
    sites = (Site(block.num_heads, block.img_attn.qkv, block.img_attn.proj) for block in network.double_blocks)
    double = joint_blocks(sites, "double")
    # The output projection takes attention and MLP side by side, so heads cannot be separated after it.
    sites = (Site(block.num_heads, block.linear1, block.linear2, weighted=False) for block in network.single_blocks)
    single = joint_blocks(sites, "single")
    reference = single[index_at_depth(8, _SINGLE, len(single))] if single else double[len(double) // 2]
    propagation = (
        [double[index_at_depth(number, _DOUBLE, len(double))] for number in (12, 18)] if double else [reference]
    )
    names = tuple(dict.fromkeys(block.name for block in propagation))
    feature: Literal["attention", "projected"] = "attention" if single else "projected"
    return Plan((*double, *single), reference.name, names, JOINT, FLOW_NOISE, feature, patch, spans)
