"""From a recording (or maps, or scores) and some phrases to masks: the method's last steps in their proper steps.

Rescale the phrases' maps, let them spread along self-attention, refine them if asked to, bring them to the size of the
masks, and only then decide each pixel. Source: GoCA, sections on per-pixel rescaling and on inference; background rules
of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import masks as finishing
from .attention.global_map import Maps, aggregate
from .attention.record import AUTO, Affinity, Attention, AttentionError
from .batches import Workplace, for_samples, in_batches, resize_maps, size_of
from .classes import clearest, find_present, outdone, two_classes
from .refine.methods import Pamr, Refinement, Step, check
from .refine.propagation import propagate, spread
from .rescale import RESCALE_METHODS, blur, merge_background, rescale
from .tensors import Grid, Range, check_choice, check_number, minmax, resize_bilinear, stack_frames, unstack_frames
from .words.word_map import Phrase, WordMap, resolve

MODES = ("partition", "threshold", "soft")
# Level of a background that no word names: the middle of the range that the scores of every object fill.
NO_BACKGROUND = 0.5


@dataclass(frozen=True)
class MaskRequest:
    """Which masks to make, and how.

    ``phrases``: one object per line, where commas pool several phrases into one; or what ``word_map.parse_phrases`` makes
    of it. ``background``: the same for what is not an object, as text; "auto" takes everything else that the prompt names,
    empty takes nothing. ``rule``: one of ``masks.MASK_RULES``, "auto" = that of the recording; with "two classes" and "clearest
    classes", which are common to all frames of a video, ``theta`` shifts the level half-way between them. ``skip_absent``:
    with "clearest classes", phrases whose things do not seem to be in the image get empty masks.
    ``propagation_steps``: -1 = the family's. ``smooth``: standard deviation of a Gaussian on the scores, in mask pixels.
    ``size``: (height, width) of the masks; None or 0 = that of the image. ``latent_size``: the size of the latent instead,
    and for a video a mask for each latent frame. ``largest``, ``remove_small`` (a fraction of the image) and ``fill_holes``
    clean up binary masks, see ``masks``.
    """

    phrases: str | tuple[tuple[str, ...], ...]
    background: str = AUTO
    mode: str = "partition"
    rule: str = AUTO
    theta: float = 0.0
    propagation_steps: int = -1
    smooth: float = 0.0
    largest: bool = False
    size: Grid | None = None
    latent_size: bool = False
    remove_small: float = 0.0
    fill_holes: bool = False
    skip_absent: bool = True


@dataclass(frozen=True)
class MaskResult:
    """``masks`` [B, K, H, W], ``background`` [B, H, W], and the ``scores`` [B, K, H, W] that they were made of.

    ``objects``: the phrases with their tokens. ``background_phrases``: what the background was made of. ``rescaled``: the
    scores as they were before propagation and refinement, [B, K, h, w] at the size of the maps. ``word_maps``: the same
    for every content word, [B, W, h, w], where it was asked for. ``present``: bool [B, K], False for a phrase that was
    skipped as absent; None where nothing was skipped. For videos, B is videos x frames, video by video.
    """

    masks: Tensor
    background: Tensor
    scores: Tensor
    objects: tuple[Phrase, ...]
    background_phrases: tuple[str, ...]
    rescaled: Tensor
    word_maps: Tensor | None = None
    present: Tensor | None = None

    def to(self, device: torch.device) -> MaskResult:
        """The same result on another device."""
        moved: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the masks."""
        return tuple(phrase.label for phrase in self.objects)

    def table(self) -> dict[str, Any]:
        """Area (fraction of the image) and mean score inside each mask, per image and phrase, as plain numbers."""
        area = self.masks.mean((2, 3))
        inside = (self.scores * self.masks).sum((2, 3)) / self.masks.sum((2, 3)).clamp_min(1e-8)
        return {
            "phrases": list(self.labels),
            "background_phrases": list(self.background_phrases),
            "absent": [] if self.present is None else (~self.present).tolist(),
            "background": [round(value, 5) for value in self.background.mean((1, 2)).tolist()],
            "area": [[round(value, 5) for value in row] for row in area.tolist()],
            "score": [[round(value, 5) for value in row] for row in inside.tolist()],
        }


@dataclass(frozen=True)
class Scoring:
    """How scores are made of maps: a rescaling, and refinements after propagation, in their order.

    It is carried out once the phrases are known, in ``make_masks`` or ``word_scores``. ``range_``: of the normalisation in
    the rescaling and after propagation (see ``tensors.stretch``).
    """

    maps: Maps
    method: str
    pool: Literal["mean", "sum"] = "mean"
    range_: Range = "full"
    steps: tuple[Step, ...] = ()


def as_scoring(source: Attention | Maps | Scoring, device: torch.device | None = None) -> Scoring:
    """A recording or maps with the family's default methods; a scoring as it is. ``device``: where maps are aggregated."""
    if isinstance(source, Attention):
        source = aggregate(source, device=device)
    return Scoring(source, AUTO) if isinstance(source, Maps) else source


def refined(source: Attention | Maps | Scoring, refinement: Refinement, image: Tensor | None = None) -> Scoring:
    """A scoring with one more refinement after those it has.

    image: [B or 1, H, W, 3] in [0, 1], for a refinement that is guided by it. Raises a ValueError of one
    sentence when what guides it is missing or does not fit.
    """
    scoring = as_scoring(source)
    record = scoring.maps.source
    check(refinement, record.batch // record.frames * record.images, image, record.affinity)
    if refinement.guide == "affinity" and any(step.refinement.guide == "image" for step in scoring.steps):
        raise ValueError(
            f"{refinement.name} works on the model's own coarse grid and would undo a refinement by the image; put it "
            "before that one."
        )
    step = Step(refinement, image if refinement.guide == "image" else None)
    return replace(scoring, steps=(*scoring.steps, step))


def sharpened(scoring: Scoring, image: Tensor) -> Scoring:
    """A scoring refined by PAMR with the image [B or 1, H, W, 3] that it belongs to, unless an image refines it already."""
    return scoring if any(step.image is not None for step in scoring.steps) else refined(scoring, Pamr(), image)


def phrase_scores(scoring: Scoring, objects: Sequence[Phrase], words: WordMap) -> Tensor:
    """Rescaled scores of objects, [B, K, h, w] at the size of the maps. Each depends on its own phrase alone."""
    tokens, record = scoring.maps.tokens, scoring.maps.source
    method = record.defaults.rescale if scoring.method == AUTO else scoring.method
    if method not in RESCALE_METHODS:
        raise AttentionError(f"Unknown rescale method {method!r}: use one of {', '.join(RESCALE_METHODS)}.")
    columns = [tokens.columns(phrase.tokens) for phrase in objects]
    content = tokens.columns(words.content())
    return rescale(scoring.maps.maps, columns, content, method, scoring.pool, scoring.range_, record.frames)


def word_scores(
    scoring: Scoring, phrases: str = "", words: WordMap | None = None, place: Workplace | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Scores for heat maps, [B, K, H, W] at the size of the image, and their names: the phrases, or every content word.

    Words that share a token, such as characters of scripts without spaces, have one map together (``WordMap.each``).
    Rescaled and refined, but not propagated. ``place``: where; None = where the recording is.
    """
    place = _place(scoring, place)
    scoring = replace(scoring, maps=scoring.maps.to(place.device))
    known = scoring.maps.tokens.word_map(words)
    found = [] if phrases.strip() else known.each()
    found = found or resolve(phrases, known)
    maps = phrase_scores(scoring, found, known)
    record = scoring.maps.source
    (scores,) = in_batches(maps, record, scoring.steps, size_of(record, None), False, place, lambda part: (part,))
    return scores, tuple(phrase.label for phrase in found)


def stages(scoring: Scoring, result: MaskResult, size: Grid) -> Tensor:
    """How the scores of a result came about, [B, 3, K, *size]: attention, rescaled, final.

    B as in the result. Attention is the mean over the tokens of a phrase, relative to the largest value of the sample.
    """
    maps = scoring.maps
    raw = torch.stack([maps.maps[:, maps.tokens.columns(phrase.tokens)].mean(1) for phrase in result.objects], 1)
    early = torch.stack((raw.float().to(result.rescaled.device), result.rescaled.float()), 1)
    early = resize_maps(early.flatten(1, 2), maps.source, size).unflatten(1, (2, -1))
    early = for_samples(early, maps.source, result.masks.shape[0])
    largest = early[:, :1].amax((2, 3, 4), keepdim=True).clamp_min(torch.finfo(early.dtype).tiny)
    late = F.interpolate(result.scores.float(), size, mode="area")
    return torch.stack((early[:, 0] / largest[:, 0], early[:, 1], late), 1)


def make_masks(
    source: Attention | Maps | Scoring,
    request: MaskRequest,
    words: WordMap | None = None,
    each_word: bool = False,
    place: Workplace | None = None,
) -> MaskResult:
    """Masks for phrases. ``each_word``: with a map of every content word as well (``MaskResult.word_maps``).

    ``place``: where masks are made, a few samples at a time where its room is small; None = where the recording is. Nothing
    waits for an accelerator before the results, except a request to clean up masks and the refinement proposal merge.
    Raises a ValueError of one sentence for a phrase, size or method that does not fit.
    """
    if request.mode not in MODES:
        raise ValueError(f"Unknown mode {request.mode!r}: use one of {', '.join(MODES)}.")
    if request.size is not None and min(request.size) < 0:
        raise ValueError(
            f"A mask of {request.size[1]} x {request.size[0]} pixels was asked for; use 1 or more, or 0 for that of the image."
        )
    for name in ("theta", "smooth", "remove_small"):
        check_number(name, getattr(request, name))
    place = _place(source, place)
    if isinstance(source, Attention) and words is not None:
        # Layers are weighted by what they say about the words, so these count there too.
        source = replace(source, tokens=replace(source.tokens, words=source.tokens.word_map(words)))
    scoring = as_scoring(source, place.device)
    scoring = replace(scoring, maps=scoring.maps.to(place.device))
    record = scoring.maps.source
    known = scoring.maps.tokens.word_map(words)
    objects, background = resolve_request(request, known)
    singles = [phrase for phrase, _ in known.single()] if each_word else []
    rescaled = phrase_scores(scoring, [*objects, *background, *singles], known)
    rescaled, word_maps = rescaled.tensor_split([len(objects) + len(background)], 1)
    count = len(objects)
    rule = record.defaults.rule if request.rule == AUTO else request.rule
    if request.mode != "soft":
        check_choice("background rule", rule, (AUTO, *finishing.MASK_RULES))
    classes = request.mode != "soft" and rule in finishing.CLASS_RULES
    several = classes and rule == finishing.CLEAREST
    # An all-zero last map stands for a background without words; propagation leaves it alone.
    rest = merge_background(rescaled[:, count:]) if background else torch.zeros_like(rescaled[:, 0])
    maps = torch.cat((rescaled[:, :count], rest[:, None]), 1)
    if several:
        maps = torch.cat((maps, _more_evidence(scoring, objects, known, bool(background))), 1)
    if classes:
        maps = torch.cat((maps, rescaled[:, count:]), 1)
    steps = record.defaults.propagation_steps if request.propagation_steps < 0 else request.propagation_steps
    affinity = record.affinity if steps else None
    if affinity is not None:
        maps = resize_bilinear(maps, (affinity.height, affinity.width))
        maps = propagate(maps, affinity.matrix.to(maps), steps, scoring.range_, record.frames)
    named, present = bool(background), None
    if classes:
        maps, rivals = maps.tensor_split([maps.shape[1] - len(background)], 1)
        if several and request.skip_absent and count > 1:
            present = _present(scoring, objects, known, affinity, steps)
        margins, level = (maps[:, :count], maps[:, count]) if named else (maps[:, :count], None)
        if several:
            margins, level = _clearest(maps, count, named, record.frames, present), None
        measured = two_classes(margins, level, record.frames, present)
        # Things that were not asked for stand out from the background as much as those that were.
        measured = torch.where(outdone(maps[:, :count], rivals, record.frames), 0.0, measured)
        maps = torch.cat((measured, torch.full_like(maps[:, :1], NO_BACKGROUND)), 1)
        request, named = replace(request, rule="offset"), False
    else:
        request = replace(request, rule=rule)
    # The image moves the edges of the classes, so their means are taken again. Not in a video, whose frames come one by one.
    again = classes and record.frames == 1 and any(step.image is not None for step in scoring.steps)

    def decide(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if request.smooth > 0:
            part = finishing.smooth(part, request.smooth)
        scores = two_classes(part[:, :count]) if again else part[:, :count]
        level = part[:, count] if named else torch.full_like(part[:, 0], NO_BACKGROUND)
        masks = _decide(scores, level, request)
        # Measured between the means of two classes, some values are beyond them.
        return masks, 1 - masks.amax(1), scores.clamp(0, 1) if classes else scores

    size = size_of(record, request.size, request.latent_size)
    masks, uncovered, scores = in_batches(maps, record, scoring.steps, size, request.latent_size, place, decide)
    return MaskResult(
        masks,
        uncovered,
        scores,
        tuple(objects),
        tuple(phrase.label for phrase in background),
        rescaled[:, :count].to(masks.device),
        word_maps.to(masks.device) if each_word else None,
        None if present is None else for_samples(present, record, len(masks)).to(masks.device),
    )


def _present(
    scoring: Scoring, objects: Sequence[Phrase], words: WordMap, affinity: Affinity | None, steps: int
) -> Tensor:
    """Which phrases are in the image, bool [B, K] (`classes.find_present`), by what propagation leaves of their attention."""
    kinds = (replace(scoring, method=method, pool="mean") for method in ("raw", "sum-1 rescaling"))
    evidence = torch.cat([phrase_scores(kind, objects, words) for kind in kinds], 1)
    if affinity is not None:
        evidence = resize_bilinear(evidence, (affinity.height, affinity.width))
        evidence = spread(evidence, affinity.matrix.to(evidence), steps)
    attention, shares = evidence.chunk(2, 1)
    return find_present(attention, shares, scoring.maps.source.frames)


def _more_evidence(scoring: Scoring, objects: Sequence[Phrase], words: WordMap, named: bool) -> Tensor:
    """Further maps for the rule clearest classes: scores that are not divided by the content words, [B, K, h, w], and, if no
    word names the background, one more map: the attention to everything but content words."""
    plain = phrase_scores(replace(scoring, method="per-token renorm+"), objects, words)
    if named:
        return plain
    frames = scoring.maps.source.frames
    content = scoring.maps.maps[:, scoring.maps.tokens.columns(words.content())].float().sum(1, keepdim=True)
    other = unstack_frames(minmax(stack_frames(blur(1 - content), frames)), frames)
    return torch.cat((plain, other.to(plain)), 1)


def _clearest(maps: Tensor, count: int, named: bool, frames: int, present: Tensor | None) -> Tensor:
    """The margins [B, K, h, w] that divide the pixels best.

    maps: scores of K objects, the background, and `_more_evidence`. Without words for the background, scores that are divided
    by the content words cannot stand alone: of a single phrase they are the same everywhere.
    """
    scores, level, plain, other = maps.tensor_split((count, count + 1, 2 * count + 1), 1)
    if named:
        return clearest((scores - level, scores, plain), (2, 1, 1), frames, present)
    return clearest((plain, scores - other, plain - other), (1, 2, 2), frames, present)


def resolve_request(request: MaskRequest, words: WordMap) -> tuple[list[Phrase], list[Phrase]]:
    """The objects and the background phrases of a request, found in a prompt. Raises a ValueError for a word not in it."""
    objects = resolve(request.phrases, words)
    return objects, _background(request.background, objects, words)


def _background(text: str, objects: Sequence[Phrase], words: WordMap) -> list[Phrase]:
    if text.strip() == AUTO and not any(word.text.casefold() == AUTO for word in words.words):
        return words.rest_phrases(objects)
    return resolve(text, words) if text.strip() else []


def _place(source: Attention | Maps | Scoring, place: Workplace | None) -> Workplace:
    """The place of work, which is the device of the source where none is given."""
    if place is not None:
        return place
    return Workplace(source.device if isinstance(source, Attention) else as_scoring(source).maps.maps.device)


def _tidy(masks: Tensor, request: MaskRequest) -> Tensor:
    if request.remove_small > 0:
        masks = finishing.remove_small(masks, request.remove_small)
    if request.largest:
        masks = finishing.largest_component(masks)
    return finishing.fill_holes(masks, disjoint=request.mode == "partition") if request.fill_holes else masks


def _decide(scores: Tensor, level: Tensor, request: MaskRequest) -> Tensor:
    """Masks [B, K, H, W] from scores and the background's level [B, H, W]."""
    if request.mode == "soft":
        return scores.clamp(0, 1)
    if request.mode == "partition":
        labels = finishing.assign(scores, level, request.rule, request.theta)
        found = finishing.one_hot(labels, scores.shape[1], check=False)
    else:
        found = finishing.threshold(scores, level, request.rule, request.theta)
    return _tidy(found.to(scores), request).to(scores)
