"""From a recording (or maps, or scores) and some phrases to masks: the method's last steps in their proper steps_taken.

Rescale the phrases' maps, let them spread along self-attention, refine them if asked to, bring them to the size of the
masks, and only then decide each pixel. Source: GoCA, sections on per-pixel rescaling and on inference; background rules
of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import masks as finishing
from .attention.global_map import Maps, aggregate
from .attention.record import AUTO, Attention, AttentionError
from .refine.methods import Refinement, Step, apply, cell_of, check
from .refine.propagation import propagate
from .rescale import RESCALE_METHODS, merge_background, rescale
from .tensors import Grid, Range, resize_bilinear
from .words.word_map import Phrase, WordMap, resolve

MODES = ("partition", "threshold", "soft")
# Level of a background of which no word is known: the middle of the range that every object's scores fill.
NO_BACKGROUND = 0.5


@dataclass(frozen=True)
class MaskRequest:
    """What to cut out, and how.

    ``phrases``: one object per line, commas pool. ``background``: the same for what is not an object; "auto" takes
    everything else that the prompt names, empty takes nothing. ``propagation_steps``: times of propagation, -1 = the family's.
    ``smooth``: standard deviation of a Gaussian on the scores, in mask pixels. ``size``: (height, width) of the masks;
    None = the picture's own. ``latent_size``: the latent's instead, and of a film a mask for each latent frame.
    ``largest``, ``remove_small`` (a share of the picture) and ``fill_holes`` tidy up masks of 0 and 1, see ``masks``.
    """

    phrases: str
    background: str = AUTO
    mode: str = "partition"
    rule: str = "offset"
    theta: float = 0.0
    propagation_steps: int = -1
    smooth: float = 0.0
    largest: bool = False
    size: Grid | None = None
    latent_size: bool = False
    remove_small: float = 0.0
    fill_holes: bool = False


@dataclass(frozen=True)
class MaskResult:
    """The result: ``masks`` [B, K, H, W], ``background`` [B, H, W], ``scores`` [B, K, H, W] that they were made of.

    ``objects``: the phrases with the tokens that they mean.
    Of films, B is films x pictures, film by film.
    """

    masks: Tensor
    background: Tensor
    scores: Tensor
    labels: tuple[str, ...]
    background_phrases: tuple[str, ...]
    objects: tuple[Phrase, ...] = ()

    def table(self) -> dict[str, Any]:
        """Area (share of the picture) and mean score inside the mask, per picture and phrase, as plain numbers.

        ``background``: the background's area per picture; ``background_phrases``: the phrases that it was made of.
        """
        area = self.masks.mean((2, 3))
        inside = (self.scores * self.masks).sum((2, 3)) / self.masks.sum((2, 3)).clamp_min(1e-8)
        return {
            "phrases": list(self.labels),
            "background_phrases": list(self.background_phrases),
            "background": [round(value, 5) for value in self.background.mean((1, 2)).tolist()],
            "area": [[round(value, 5) for value in row] for row in area.tolist()],
            "score": [[round(value, 5) for value in row] for row in inside.tolist()],
        }


@dataclass(frozen=True)
class Scores:
    """A rescaling chosen but not yet done, and refinements after it: they need the objects, which the mask node knows.

    ``range_``: of the stretch in the rescaling and after propagation (see ``resize.stretch``). ``steps``: refinements in
    their steps_taken, after propagation.
    """

    maps: Maps
    method: str
    pool: Literal["mean", "sum"] = "mean"
    range_: Range = "full"
    steps: tuple[Step, ...] = ()


def as_scores(source: Attention | Maps | Scores) -> Scores:
    """A recording or maps with the family's default methods applied; scores as they are."""
    if isinstance(source, Attention):
        source = aggregate(source)
    return Scores(source, AUTO) if isinstance(source, Maps) else source


def refined(source: Attention | Maps | Scores, refinement: Refinement, picture: Tensor | None = None) -> Scores:
    """Scores with one more refinement after those they have, done when masks or heat maps are made of them.

    picture: [B or 1, H, W, 3] in [0, 1], for a refinement that is guided by it. Raises a ValueError of one sentence when
    what guides it is missing or does not fit.
    """
    scores = as_scores(source)
    record = scores.maps.source
    check(refinement, record.batch // record.frames * record.pictures, picture, record.affinity)
    if refinement.guide == "affinity" and any(step.refinement.guide == "picture" for step in scores.steps):
        raise ValueError(
            f"{refinement.name} works on the model's own coarse grid and would undo a refinement by the picture; put it "
            "before that one."
        )
    step = Step(refinement, picture if refinement.guide == "picture" else None)
    return replace(scores, steps=(*scores.steps, step))


def phrase_scores(scores: Scores, objects: Sequence[Phrase], words: WordMap) -> Tensor:
    """Rescaled scores of objects, [B, K, h, w] at the size of the maps."""
    tokens = scores.maps.tokens
    method = scores.maps.source.defaults.rescale if scores.method == AUTO else scores.method
    if method not in RESCALE_METHODS:
        raise AttentionError(f"Unknown rescale method {method!r}: use one of {', '.join(RESCALE_METHODS)}.")
    columns = [tokens.columns(phrase.tokens) for phrase in objects]
    content, frames = tokens.columns(words.content()), scores.maps.source.frames
    return rescale(scores.maps.maps, columns, content, method, scores.pool, scores.range_, frames)


def word_scores(scores: Scores, phrases: str = "", words: WordMap | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Scores to look at, [B, K, H, W] at the size of the picture, and their names: the phrases, or every content word.

    Rescaled and refined, but not propagated.
    """
    known = scores.maps.tokens.word_map(words)
    if not phrases.strip():
        phrases = "\n".join(dict.fromkeys(word.name.replace(",", "\\,") for word in known.words if word.content))
    found = resolve(phrases, known)
    maps = phrase_scores(scores, found, known)
    return _finish(maps, scores, None), tuple(phrase.label for phrase in found)


def each_word(scores: Scores, words: WordMap, size: Grid) -> Tensor:
    """Rescaled scores of every content word by itself, [B, K, *size]: a quick look, neither refined nor propagated.

    B as recorded: of a film, its latent frames. Words that occur several times are taken one by one. Raises AttentionError for
    a prompt without content words.
    """
    found = [Phrase(word.name, (word.text,), word.positions) for word in words.words if word.content]
    if not found:
        raise AttentionError("The prompt has no content words to look at.")
    return _to_size(phrase_scores(scores, found, words), scores.maps.source, size)


def steps(scores: Scores, result: MaskResult, words: WordMap, size: Grid) -> Tensor:
    """How the scores of a cut came about, [B, 3, K, *size]: attention as it was, rescaled, and at last.

    B as in the cut. Attention as it was is the mean over the tokens of a phrase, in shares of the largest value of the sample.
    """
    maps = scores.maps
    raw = torch.stack([maps.maps[:, maps.tokens.columns(phrase.tokens)].mean(1) for phrase in result.objects], 1)
    early = torch.stack((raw.float(), phrase_scores(scores, result.objects, words).float()), 1)
    early = _to_size(early.flatten(1, 2), maps.source, size).unflatten(1, (2, -1))
    early = for_samples(early, maps.source, result.masks.shape[0])
    largest = early[:, :1].amax((2, 3, 4), keepdim=True).clamp_min(torch.finfo(early.dtype).tiny)
    late = F.interpolate(result.scores.float(), size, mode="area")
    return torch.stack((early[:, 0] / largest[:, 0], early[:, 1], late), 1)


def make_masks(source: Attention | Maps | Scores, request: MaskRequest, words: WordMap | None = None) -> MaskResult:
    """Masks for phrases. Raises a ValueError of one sentence for a phrase, size or method that does not fit."""
    if request.mode not in MODES:
        raise ValueError(f"Unknown mode {request.mode!r}: use one of {', '.join(MODES)}.")
    if request.size is not None and min(request.size) < 1:
        raise ValueError(
            f"A mask of {request.size[1]} x {request.size[0]} pixels was asked for; width and height must be at least 1."
        )
    scores = as_scores(source)
    record = scores.maps.source
    known = scores.maps.tokens.word_map(words)
    objects, background_phrases = resolve_request(request, known)
    maps = phrase_scores(scores, [*objects, *background_phrases], known)
    count = len(objects)
    # An all-zero last map stands for a background without words; propagation leaves it alone.
    back = merge_background(maps[:, count:]) if background_phrases else torch.zeros_like(maps[:, 0])
    maps = torch.cat((maps[:, :count], back[:, None]), 1)
    steps_taken = record.defaults.propagation_steps if request.propagation_steps < 0 else request.propagation_steps
    if steps_taken and (affinity := record.affinity) is not None:
        maps = resize_bilinear(maps, (affinity.height, affinity.width))
        maps = propagate(maps, affinity.matrix.to(maps), steps_taken, scores.range_, record.frames)
    maps = _finish(maps, scores, request.size, request.latent_size)
    if request.smooth > 0:
        maps = finishing.smooth(maps, request.smooth)
    found = maps[:, :count]
    level = maps[:, count] if background_phrases else torch.full_like(maps[:, 0], NO_BACKGROUND)
    return _decide(found, level, request, objects, background_phrases)


def resolve_request(request: MaskRequest, words: WordMap) -> tuple[list[Phrase], list[Phrase]]:
    """The objects and the background phrases of a request, found in a prompt. Raises a ValueError for a word not in it."""
    objects = resolve(request.phrases, words)
    return objects, _background(request.background, objects, words)


def _background(text: str, objects: Sequence[Phrase], words: WordMap) -> list[Phrase]:
    if text.strip() == AUTO and not any(word.text.casefold() == AUTO for word in words.words):
        rest = words.rest(objects)
        return resolve("\n".join(phrase.replace(",", "\\,") for phrase in rest), words) if rest else []
    return resolve(text, words) if text.strip() else []


def _finish(maps: Tensor, scores: Scores, size: Grid | None, latent: bool = False) -> Tensor:
    """Refine maps in the steps_taken of the steps, and bring them to the size of the masks; None is that of the picture.

    ``latent``: to that of the latent, and to its frames; a refinement by the picture is made on the picture's all the same.
    """
    record = scores.maps.source
    size = size or (record.height * record.vae_scale, record.width * record.vae_scale)
    size = (record.height, record.width) if latent else size
    cell = 0
    for step in scores.steps:
        if step.picture is not None and not cell:
            # The first time a picture is looked at; from here on maps are as large as pictures, and cover no more.
            cell = cell_of(maps, step.picture)
            maps = _to_size(_shown(maps, record), record, (step.picture.shape[1], step.picture.shape[2]))
        maps = apply(step.refinement, maps, step.picture, record.affinity, cell)
    if not cell:
        return _to_size(maps if latent else _shown(maps, record), record, size)
    if latent:
        maps = latent_frames(maps, record)
    return F.interpolate(maps, size, mode="bilinear", antialias=True) if tuple(maps.shape[2:]) != size else maps


def for_samples(values: Tensor, record: Attention, samples: int) -> Tensor:
    """What was made of a record, [B, ...], for so many samples: of a film, for its latent frames or for its pictures."""
    return values if values.shape[0] == samples else _shown(values, record)


def _shown(maps: Tensor, record: Attention) -> Tensor:
    """Maps of latent frames for the pictures that they become: the first frame one, each other ``stride``."""
    if record.frames == 1:
        return maps
    frame = (
        torch.arange(record.pictures + record.temporal_compression - 1, device=maps.device)[
            record.temporal_compression - 1 :
        ]
        // record.temporal_compression
    )
    return maps.unflatten(0, (-1, record.frames))[:, frame].flatten(0, 1)


def latent_frames(maps: Tensor, record: Attention) -> Tensor:
    """Maps of pictures for latent frames: the mean of those that a frame becomes."""
    if record.frames == 1:
        return maps
    films = maps.unflatten(0, (-1, record.pictures))
    rest = films[:, 1:].unflatten(1, (record.frames - 1, record.temporal_compression)).mean(2)
    return torch.cat((films[:, :1], rest), 1).flatten(0, 1)


def _to_size(maps: Tensor, record: Attention, size: Grid) -> Tensor:
    """Bring maps from the grid of the tokens to a size in pixels.

    Tokens of a model that works on patches cover a little more than an odd-sized latent; that part is cut off.
    """
    height, width = size
    grid = max(((layer.height, layer.width) for layer in record.layers), key=lambda g: g[0] * g[1])
    covered = [
        side * math.ceil(latent / side) for side, latent in zip(grid, (record.height, record.width), strict=True)
    ]
    full = (round(height * covered[0] / record.height), round(width * covered[1] / record.width))
    return resize_bilinear(maps, full)[..., :height, :width]


def _tidy(masks: Tensor, request: MaskRequest) -> Tensor:
    if request.remove_small > 0:
        masks = finishing.remove_small(masks, request.remove_small)
    if request.largest:
        masks = finishing.largest_component(masks)
    return finishing.fill_holes(masks, disjoint=request.mode == "partition") if request.fill_holes else masks


def _decide(
    scores: Tensor, level: Tensor, request: MaskRequest, objects: Sequence[Phrase], background_phrases: Sequence[Phrase]
) -> MaskResult:
    if request.mode == "partition":
        found = finishing.one_hot(finishing.assign(scores, level, request.rule, request.theta), len(objects)).to(scores)
    elif request.mode == "threshold":
        found = finishing.threshold(scores, level, request.rule, request.theta).to(scores)
    else:
        found = scores.clamp(0, 1)
    if request.mode != "soft":
        found = _tidy(found, request).to(scores)
    return MaskResult(
        found,
        1 - found.amax(1),
        scores,
        tuple(phrase.label for phrase in objects),
        tuple(phrase.label for phrase in background_phrases),
        tuple(objects),
    )
