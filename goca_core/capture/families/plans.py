"""Settings for families that the paper does not cover: places by depth, and the plans of joint and of cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...attention.record import Defaults
from .base import TEXT_FIRST, Block, Plan, References, SpanRule, no_references


def index_at_depth(index: int, of: int, depth: int) -> int:
    """The layer of ``depth`` at the place of layer ``index`` of ``of``: the paper's numbers for a model of other depth."""
    return index * depth // of


def slice_at_depth(first: int, after: int, of: int, depth: int) -> slice:
    """The layers at the places of ``first`` to ``after`` (excluded), one at least."""
    start = index_at_depth(first, of, depth)
    return slice(start, max(index_at_depth(after, of, depth), start + 1))


def default_layers(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Reference and propagation layers where the paper gives none.

    The reference is the layer at half of the depth (the paper's are at 0.46 in PixArt, 0.47 in Flux, 0.62 in
    Hunyuan-DiT); those from three to five eighths of the depth serve propagation (PixArt: from 0.36 to 0.61).
    """
    depth = len(names)
    return names[depth // 2], tuple(names[3 * depth // 8 : max(5 * depth // 8, 3 * depth // 8 + 1)])


# What the paper chose for Flux serves every model of joint attention that it does not speak of: heads are averaged, since
# what a head gives mixes text and picture, scores spread twice, and attention is read at Flux's noise level.
JOINT = Defaults("average", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 2)


FLOW_NOISE = 0.407


def joint_plan(
    blocks: Sequence[Block],
    patch: int,
    spans: SpanRule = TEXT_FIRST,
    feature: Literal["attention", "projected"] | None = None,
    references: References = no_references,
) -> Plan:
    """The plan of a network of joint attention that the paper does not speak of.

    ``feature``: if nothing is said, what the projection of the picture's own stream gives, or in blocks named
    ``single...``, behind whose projection text and picture are one, what it takes.
    """
    reference, middle = default_layers([block.name for block in blocks])
    feature = feature or ("attention" if reference.startswith("single") else "projected")
    return Plan(tuple(blocks), reference, middle, JOINT, FLOW_NOISE, feature, patch, spans, references=references)


# And what it chose for PixArt serves every transformer of cross-attention. The noise is a ratio of noise to signal.
CROSS = Defaults("dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 5)


CROSS_NOISE = 0.342


def cross_plan(
    blocks: Sequence[Block],
    patch: int,
    noise_level: float = CROSS_NOISE / (1 + CROSS_NOISE),
    frame_patch: int = 0,
    references: References = no_references,
) -> Plan:
    """The plan of a transformer of cross-attention that the paper does not speak of; if nothing else is said, of a flow
    model, whose sigma is the share of noise."""
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
