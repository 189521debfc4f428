"""Regions for semantic guidance, from the attention of one step.

There are two kinds. GoCA's are made from the method's own maps of every token (the paper's section on generation). S-CFG's,
as published, are made from plain averages of the coarse layers, sharpened by their self-attention. `rate` turns regions
into a guidance rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..attention.global_map import Maps, aggregate
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
    """How regions are made and how strongly they count. The defaults are the published ones.

    ``rule``: one of REGION_RULES. ``head``, ``layer``, ``rescale``, ``propagation_steps``: the methods of GoCA's regions
    ("auto" and -1 for the family's). ``ties``, ``minimum``, ``maximum``, ``ceiling``, ``smooth``: see ``rate.regions`` and
    ``rate.rate_map``. ``renew_every``: find the regions in every so many evaluations, and use them in those that follow; 1 is
    the published way. Raises ValueError for an unknown name, a minimum above the maximum, or a ``renew_every`` below 1.
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
    renew_every: int = 1

    def __post_init__(self) -> None:
        check_choice("regions", self.rule, REGION_RULES)
        check_choice("head method", self.head, (AUTO, *HEAD_METHODS))
        check_choice("layer method", self.layer, (AUTO, *LAYER_METHODS))
        check_choice("rescale method", self.rescale, (AUTO, *RESCALE_METHODS))
        check_choice("ties", self.ties, ("first", "all"))
        if self.renew_every < 1:
            raise ValueError(f"Regions cannot be found in every {self.renew_every} evaluations; use 1 or more.")
        if self.minimum > self.maximum:
            raise ValueError(
                f"The minimum rate {self.minimum:g} is above the maximum {self.maximum:g}; use a minimum that is not above it."
            )


@dataclass(frozen=True)
class Regions:
    """``masks`` [B, R, h, w] of the regions and ``foreground`` [B, h, w], both of exactly 0 and 1."""

    masks: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class PlainLayer:
    """One layer's attention, averaged over heads, on a grid of ``height`` x ``width``.

    ``cross`` [B, N, T], ``own``: self-attention [B, N, N].
    """

    height: int
    width: int
    cross: Tensor
    own: Tensor


# -- GoCA's regions -------------------------------------------------------------------------------------------------


def candidates(words: WordMap) -> list[int]:
    """Token positions that may own pixels: all up to the last word, including the start token, without padding."""
    in_words = [position for word in words.words for position in word.positions]
    return [position for position in range(max(in_words, default=-1) + 1) if position not in words.pad]


def background_token(words: WordMap) -> tuple[Literal["negative", "positive"], int] | None:
    """The token that attends to the background, as (prompt, token position).

    This is the start token of the negative prompt, or the end token of the positive prompt if the text encoder has no start
    token. None if it has neither.
    """
    for kind, side in (("start", "negative"), ("end", "positive")):
        for piece in words.pieces:
            if piece.kind == kind:
                return ("negative" if side == "negative" else "positive"), piece.position
    return None


def goca_regions(positive: Attention, negative: Attention | None, settings: Settings) -> Regions | None:
    """Make the regions of one step, at the size of the latent.

    ``positive`` must have a word map and hold the tokens of `candidates`. The recording that `background_token` names must
    hold its token; without such a token, everything is foreground.
    Returns None when the prompt is empty, or when the negative prompt is needed and was not recorded.
    """
    words = positive.tokens.word_map()
    owners = candidates(words)
    if not owners:
        return None
    # On an accelerator nothing here waits for it, so a recording that is not finite cannot be an error; see `_known`.
    maps = aggregate(positive, settings.head, settings.layer, check=False)
    in_words = sorted({position for word in words.words for position in word.positions})
    method = positive.defaults.rescale if settings.rescale == AUTO else settings.rescale
    columns = positive.tokens.columns(owners)
    scores = rescale(maps.maps, [[column] for column in columns], positive.tokens.columns(in_words), method)
    token = background_token(words)
    background, recorded = None, [maps]
    if token is not None:
        side, position = token
        owner = positive
        if side == "negative":
            if negative is None:
                return None
            owner = negative
            recorded.append(aggregate(negative, settings.head, settings.layer, check=False))
        column = owner.tokens.columns([position])[0]
        background = recorded[-1].maps[:, column : column + 1]
    # Together, because a GPU finishes such small kernels before the next one is started.
    spread = _propagated(scores if background is None else torch.cat((scores, background), 1), positive, settings)
    masks = regions(spread[:, : scores.shape[1]], ties=settings.ties)
    fore = torch.ones_like(masks[:, 0]) if background is None else foreground(spread[:, -1])
    return Regions(masks, _known(fore, recorded))


def _known(fore: Tensor, recorded: Sequence[Maps]) -> Tensor:
    """The foreground [B, h, w], or none in samples whose maps are not finite: `rate_map` gives them plain guidance.

    On a CPU `aggregate` has refused such maps before.
    """
    # The sum of a map is its number of pixels, or NaN.
    known = torch.stack([maps.maps.sum((1, 2, 3)) for maps in recorded]).sum(0).isfinite()
    return fore * known[:, None, None]


def _propagated(scores: Tensor, record: Attention, settings: Settings) -> Tensor:
    """Propagate scores along the self-attention of the positive prompt, and resize them to the latent."""
    steps = record.defaults.propagation_steps if settings.propagation_steps < 0 else settings.propagation_steps
    if steps and record.affinity is not None:
        grid = record.affinity.height, record.affinity.width
        scores = propagate(resize_bilinear(scores, grid), record.affinity.matrix.to(scores), steps)
    # Tokens that are several cells large may cover slightly more than the latent.
    latent = record.height, record.width
    covered = [side * math.ceil(cells / side) for side, cells in zip(scores.shape[-2:], latent, strict=True)]
    return resize_bilinear(scores, (covered[0], covered[1]))[..., : latent[0], : latent[1]]


# -- the published regions --------------------------------------------------------------------------------------------


def published_regions(
    positive: Sequence[PlainLayer], negative: Sequence[PlainLayer], ties: Literal["first", "all"] = "first"
) -> Regions:
    """Make S-CFG's regions, at the finest grid of the layers.

    positive, negative: the layers, recorded for the positive and the negative prompt. A pixel belongs to the token of the
    positive prompt with the largest map. It is foreground where the map of the negative prompt's first token is smaller than
    the sum of all others. Raises AttentionError when there are no layers.
    """
    if not positive or not negative:
        raise AttentionError("No layer that S-CFG's regions need was recorded; choose GoCA's regions.")
    refined = _refined([*positive, *negative])
    words, others = (torch.stack(part) for part in (refined[: len(positive)], refined[len(positive) :]))
    masks = regions(_normalised(words).mean(0), ties=ties)
    versus = _normalised(torch.stack((others[:, :, 0], others[:, :, 1:].sum(2)), 2)).mean(0)
    return Regions(masks, (versus[:, 1] > versus[:, 0]).to(torch.float32))


def _refined(layers: Sequence[PlainLayer]) -> list[Tensor]:
    """Token maps [B, T, h, w] of each layer, sharpened by its self-attention, resized to one size and slightly blurred."""
    size: Grid = max(((layer.height, layer.width) for layer in layers), key=lambda grid: grid[0] * grid[1])
    # Layers of one size together, because a GPU finishes such small kernels before the next one is started.
    alike: dict[tuple[Grid, torch.Size], list[int]] = {}
    for number, layer in enumerate(layers):
        alike.setdefault(((layer.height, layer.width), layer.cross.shape), []).append(number)
    found: dict[int, Tensor] = {}
    for ((height, width), _), numbers in alike.items():
        own, cross = (torch.cat([getattr(layers[n], name) for n in numbers]).float() for name in ("own", "cross"))
        once = own @ cross
        sharpened = (once + 3 * (own @ once)) / 4  # (S + 3 S²) A / 4
        image = resize_bilinear(sharpened.mT.unflatten(-1, (height, width)), size)
        found.update(zip(numbers, gaussian_blur(image, 3, 0.5**0.5).chunk(len(numbers)), strict=True))
    return [found[number] for number in range(len(layers))]


def _normalised(maps: Tensor) -> Tensor:
    """Divide each token's map by its mean."""
    return maps / (maps.mean((-2, -1), keepdim=True) + 1e-8)


# -- several conditionings --------------------------------------------------------------------------------------------


def join(found: Sequence[Regions], weights: Sequence[Tensor]) -> Regions:
    """Combine the regions of several conditionings: each pixel keeps those of the one with the largest weight there.

    weights: one [B, h, w] for each conditioning, at the size of the regions. On a tie, the first wins.
    """
    owner = torch.stack(list(weights), 1).argmax(1)
    masks = [part.masks * (owner == number)[:, None] for number, part in enumerate(found)]
    fore = [part.foreground * (owner == number) for number, part in enumerate(found)]
    return Regions(torch.cat(masks, 1), torch.stack(fore).sum(0))
