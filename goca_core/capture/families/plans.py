"""Settings for families that the paper does not cover: layers by relative depth, and plans for joint and cross-attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ...attention.record import Defaults
from .base import TEXT_FIRST, Block, Plan, References, Site, SpanRule, no_references


def joint_blocks(sites: Iterable[Site], name: str = "block") -> list[Block]:
    """Layers with joint attention, numbered from 0."""
    return [Block(f"{name}.{number}", site, None) for number, site in enumerate(sites)]


def cross_blocks(sites: Iterable[tuple[Site, Site]], first: int = 0) -> list[Block]:
    """Layers with cross-attention and self-attention, numbered from ``first``."""
    return [Block(f"block.{number}", cross, own) for number, (cross, own) in enumerate(sites, first)]


def index_at_depth(index: int, of: int, depth: int) -> int:
    """The layer of ``depth`` at the same relative depth as layer ``index`` of ``of``: adapts the paper's layer numbers."""
    return index * depth // of


def slice_at_depth(first: int, after: int, of: int, depth: int) -> slice:
    """The layers at the same relative depth as ``first`` to ``after`` (excluded) of ``of``; at least one."""
    start = index_at_depth(first, of, depth)
    return slice(start, max(index_at_depth(after, of, depth), start + 1))


def default_layers(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Reference and propagation layers where the paper gives none.

    The reference is the layer at half the depth (the paper's are at 0.46 in PixArt, 0.47 in Flux, 0.62 in Hunyuan-DiT).
    The layers from three to five eighths of the depth are used for propagation (PixArt: from 0.36 to 0.61).
    """
    depth = len(names)
    return names[depth // 2], tuple(names[3 * depth // 8 : max(5 * depth // 8, 3 * depth // 8 + 1)])


# Every model with joint attention that the paper does not cover gets the paper's choices for Flux: heads are averaged,
# because the output of a head mixes text and image, there are two propagation steps, and attention is recorded at Flux's
# noise level.
JOINT = Defaults("average", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 2)
FLOW_NOISE = 0.407
# For models whose sigma is a ratio of noise to signal instead of a fraction of noise.
FLOW_NOISE_RATIO = FLOW_NOISE / (1 - FLOW_NOISE)


def joint_plan(
    blocks: Sequence[Block],
    patch: int,
    spans: SpanRule = TEXT_FIRST,
    feature: Literal["attention", "projected"] | None = None,
    noise_level: float = FLOW_NOISE,
    frame_patch: int = 0,
    references: References = no_references,
) -> Plan:
    """The plan of a network with joint attention that the paper does not cover.

    ``feature``: by default the output of the projection of the image stream; in blocks named ``single...``, where text
    and image share that projection, its input. ``noise_level``: by default that of a flow model, whose sigma is the
    fraction of noise.
    """
    reference, middle = default_layers([block.name for block in blocks])
    feature = feature or ("attention" if reference.startswith("single") else "projected")
    return Plan(tuple(blocks), reference, middle, JOINT, noise_level, feature, patch, spans, frame_patch, references)


# Every transformer with cross-attention gets the paper's choices for PixArt. The noise level is a noise-to-signal ratio.
CROSS = Defaults("dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 5)
CROSS_NOISE = 0.342


def cross_plan(
    blocks: Sequence[Block],
    patch: int,
    noise_level: float = CROSS_NOISE / (1 + CROSS_NOISE),
    frame_patch: int = 0,
    references: References = no_references,
) -> Plan:
    """The plan of a transformer with cross-attention that the paper does not cover.

    ``noise_level``: by default that of a flow model, whose sigma is the fraction of noise.
    """
    reference, middle = default_layers([block.name for block in blocks])
    return Plan(
        tuple(blocks),
        reference,
        middle,
        CROSS,
        noise_level,
        patch=patch,
        frame_patch=frame_patch,
        references=references,
    )
