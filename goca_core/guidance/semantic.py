"""Regions for semantic guidance, from what the model attended to in one step.

Two ways. GoCA's: the method's own maps of every token (its section on generation). S-CFG's, as published: plain averages
of the coarse layers, sharpened by their self-attention. What is done with the regions is in ``guidance``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..attention.global_map import aggregate
from ..attention.record import AUTO, Attention, AttentionError
from ..heads import HEAD_METHODS
from ..layers import LAYER_METHODS
from ..refine.propagation import propagate
from ..rescale import RESCALE_METHODS, rescale
from ..tensors import Grid, check_choice, gaussian_blur, resize_bilinear
from ..words.word_map import WordMap
from .rate import foreground, regions

REGION_RULES = ("GoCA", "S-CFG")


@dataclass(frozen=True)
class Settings:
    """How regions are found and how strongly they count; the defaults are the published ones.

    ``rule``: whose regions. ``head``, ``layer``, ``rescale``, ``propagation_steps``: the methods of GoCA's regions ("auto", -1: the
    family's own). ``ties``, ``minimum``, ``maximum``, ``ceiling``, ``smooth``: see ``guidance.regions`` and
    ``guidance.rate_map``. Raises ValueError for a name that is unknown or limits the wrong way round.
    """

    rule: str = "GoCA"
    head: str = AUTO
    layer: str = AUTO
    rescale: str = AUTO
    propagation_steps: int = -1
    ties: Literal["first", "all"] = "first"
    minimum: float = 0.8
    maximum: float = 3.0
    ceiling: float = 15.0
    smooth: bool = True

    def __post_init__(self) -> None:
        check_choice("regions", self.rule, REGION_RULES)
        check_choice("head method", self.head, (AUTO, *HEAD_METHODS))
        check_choice("layer method", self.layer, (AUTO, *LAYER_METHODS))
        check_choice("rescale method", self.rescale, (AUTO, *RESCALE_METHODS))
        check_choice("ties", self.ties, ("first", "all"))
        if self.minimum > self.maximum:
            raise ValueError(
                f"The rate should lie between {self.minimum:g} and {self.maximum:g}; minimum must not be above maximum."
            )


@dataclass(frozen=True)
class Regions:
    """``masks`` [B, R, h, w] of the regions and ``foreground`` [B, h, w], of exactly 0 and 1."""

    masks: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class PlainLayer:
    """Head means of one layer on a grid of ``height`` x ``width``: ``cross`` [B, N, T], ``own`` [B, N, N]."""

    height: int
    width: int
    cross: Tensor
    own: Tensor


# -- GoCA's regions -------------------------------------------------------------------------------------------------


def candidates(words: WordMap) -> list[int]:
    """Token positions that may own pixels: all up to the last word, the start token too, but no padding between chunks."""
    spoken = [position for word in words.words for position in word.positions]
    return [position for position in range(max(spoken, default=-1) + 1) if position not in words.pad]


def background_token(words: WordMap) -> tuple[Literal["negative", "positive"], int] | None:
    """The token that gathers the background: the start token of the negative prompt, or where the text encoder has
    none the end token of the positive prompt; None if it has neither."""
    for kind, side in (("start", "negative"), ("end", "positive")):
        for piece in words.pieces:
            if piece.kind == kind:
                return ("negative" if side == "negative" else "positive"), piece.position
    return None


def goca_regions(positive: Attention, negative: Attention | None, settings: Settings) -> Regions | None:
    """Regions of one step at the size of the latent; None when the prompt is empty or the negative was not recorded.

    ``positive`` must know its words and hold the tokens of `candidates`; both must hold that of `background_token`.
    Without such a token everything counts as foreground.
    """
    words = positive.tokens.word_map()
    owners = candidates(words)
    if not owners:
        return None
    maps = aggregate(positive, settings.head, settings.layer)
    spoken = sorted({position for word in words.words for position in word.positions})
    method = positive.defaults.rescale if settings.rescale == AUTO else settings.rescale
    columns = positive.tokens.columns(owners)
    scores = rescale(maps.maps, [[column] for column in columns], positive.tokens.columns(spoken), method)
    masks = regions(_spread(scores, positive, settings), ties=settings.ties)
    behind = background_token(words)
    if behind is None:
        return Regions(masks, torch.ones_like(masks[:, 0]))
    side, position = behind
    if side == "negative":
        if negative is None:
            return None
        column = negative.tokens.columns([position])[0]
        gathered = aggregate(negative, settings.head, settings.layer).maps[:, [column]]
    else:
        gathered = maps.maps[:, positive.tokens.columns([position])]
    return Regions(masks, foreground(_spread(gathered, positive, settings)[:, 0]))


def _spread(scores: Tensor, record: Attention, settings: Settings) -> Tensor:
    """Scores along the self-attention of the positive half, brought to the latent's cells."""
    steps = record.defaults.propagation_steps if settings.propagation_steps < 0 else settings.propagation_steps
    if steps and record.affinity is not None:
        grid = record.affinity.height, record.affinity.width
        scores = propagate(resize_bilinear(scores, grid), record.affinity.matrix.to(scores), steps)
    # Tokens of several cells may cover a little more than the latent.
    latent = record.height, record.width
    covered = [side * math.ceil(cells / side) for side, cells in zip(scores.shape[-2:], latent, strict=True)]
    return resize_bilinear(scores, (covered[0], covered[1]))[..., : latent[0], : latent[1]]


# -- the published regions --------------------------------------------------------------------------------------------


def published_regions(
    positive: Sequence[PlainLayer], negative: Sequence[PlainLayer], ties: Literal["first", "all"] = "first"
) -> Regions:
    """S-CFG's regions, at the finest grid of the layers.

    A pixel belongs to the token with the largest map of the positive half. It is foreground where the first token of the
    negative half loses against all others together. Raises AttentionError when there are no layers.
    """
    masks = regions(_mean([_normalised(maps) for maps in _refined(positive)]), ties=ties)
    versus = _mean(
        [_normalised(torch.stack((maps[:, 0], maps[:, 1:].sum(1)), 1)) for maps in _refined(negative)],
    )
    return Regions(masks, (versus[:, 1] > versus[:, 0]).to(torch.float32))


def _refined(layers: Sequence[PlainLayer]) -> list[Tensor]:
    """Token maps [B, T, h, w] of each layer, sharpened by its self-attention, at one size and slightly smoothed."""
    if not layers:
        raise AttentionError("No layer was recorded that S-CFG's regions could be made of; choose GoCA's regions.")
    size: Grid = max(((layer.height, layer.width) for layer in layers), key=lambda grid: grid[0] * grid[1])
    maps = []
    for layer in layers:
        own, cross = layer.own.float(), layer.cross.float()
        once = own @ cross
        sharpened = (once + 3 * (own @ once)) / 4  # (S + 3 S²) A / 4
        image = sharpened.mT.unflatten(-1, (layer.height, layer.width))
        maps.append(gaussian_blur(resize_bilinear(image, size), 3, 0.5**0.5))
    return maps


def _normalised(maps: Tensor) -> Tensor:
    """Each token's map divided by its mean."""
    return maps / (maps.mean((-2, -1), keepdim=True) + 1e-8)


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(maps)).mean(0)


# -- several conditionings --------------------------------------------------------------------------------------------


def join(found: Sequence[Regions], weights: Sequence[Tensor]) -> Regions:
    """Regions of several conditionings at once: each pixel keeps those of the one that counts most there.

    weights: one [B, h, w] for each, at the size of the regions; the first of equal ones wins.
    """
    owner = torch.stack(list(weights), 1).argmax(1)
    masks = [part.masks * (owner == number)[:, None] for number, part in enumerate(found)]
    fore = [part.foreground * (owner == number) for number, part in enumerate(found)]
    return Regions(torch.cat(masks, 1), torch.stack(fore).sum(0))
