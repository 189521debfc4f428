"""From a recording (or maps, or scores) and some phrases to masks: the method's last steps in their proper steps.

Rescale the phrases' maps, let them spread along self-attention, refine them if asked to, bring them to the size of the
masks, and only then decide each pixel. Source: GoCA, sections on per-pixel rescaling and on inference; background rules
of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from .rescale import RESCALE_METHODS, blur, merge_background, rescale
from .tensors import Grid, Range, check_choice, minmax, resize_bilinear, stack_frames, unstack_frames
from .words.word_map import Phrase, WordMap, resolve

MODES = ("partition", "threshold", "soft")
# Level of a background that no word names: the middle of the range that the scores of every object fill.
NO_BACKGROUND = 0.5
# Bytes of maps that are worked on at once where memory has no limit; more would leave the CPU's cache.
_BATCH = 1 << 25
_COPIES = 8  # tensors of the size of the maps that exist at once while masks are made


@dataclass(frozen=True)
class Workplace:
    """Where masks are made: a device, the bytes of its memory that may be used, and where results go.

    ``room``: None = no limit. ``results``: the device of what is handed back, None = that of the recording. Results that fit
    into the room beside the work stay on the device, so that more can be computed of them there (`MaskResult.to`).

    >>> Workplace(torch.device("cpu")).room is None
    True
    """

    device: torch.device
    room: int | None = None
    results: torch.device | None = None


@dataclass(frozen=True)
class MaskRequest:
    """Which masks to make, and how.

    ``phrases``: one object per line, where commas pool several phrases into one; or what ``word_map.parse_phrases`` makes
    of it. ``background``: the same for what is not an object, as text; "auto" takes everything else that the prompt names,
    empty takes nothing. ``rule``: one of ``masks.MASK_RULES``; with "two classes" and "clearest classes", which are found
    before refinement and are common to all frames of a video, ``theta`` shifts the level half-way between them.
    ``propagation_steps``: -1 = the family's. ``smooth``: standard deviation of a Gaussian on the scores, in mask pixels.
    ``size``: (height, width) of the masks; None or 0 = that of the image. ``latent_size``: the size of the latent instead,
    and for a video a mask for each latent frame. ``largest``, ``remove_small`` (a fraction of the image) and ``fill_holes``
    clean up binary masks, see ``masks``.
    """

    phrases: str | tuple[tuple[str, ...], ...]
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
    """``masks`` [B, K, H, W], ``background`` [B, H, W], and the ``scores`` [B, K, H, W] that they were made of.

    ``objects``: the phrases with their tokens. ``background_phrases``: what the background was made of. ``rescaled``: the
    scores as they were before propagation and refinement, [B, K, h, w] at the size of the maps. ``word_maps``: the same
    for every content word, [B, W, h, w], where it was asked for. For videos, B is videos x frames, video by video.
    """

    masks: Tensor
    background: Tensor
    scores: Tensor
    objects: tuple[Phrase, ...]
    background_phrases: tuple[str, ...]
    rescaled: Tensor
    word_maps: Tensor | None = None

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
    (scores,) = _in_batches(maps, scoring, _size_of(scoring.maps.source, None), False, place, lambda part: (part,))
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
    place = _place(source, place)
    scoring = as_scoring(source, place.device)
    scoring = replace(scoring, maps=scoring.maps.to(place.device))
    record = scoring.maps.source
    known = scoring.maps.tokens.word_map(words)
    objects, background = resolve_request(request, known)
    singles = _content_words(known) if each_word else []
    rescaled = phrase_scores(scoring, [*objects, *background, *singles], known)
    rescaled, word_maps = rescaled.tensor_split([len(objects) + len(background)], 1)
    count = len(objects)
    if request.mode != "soft":
        check_choice("background rule", request.rule, finishing.MASK_RULES)
    # An all-zero last map stands for a background without words; propagation leaves it alone.
    rest = merge_background(rescaled[:, count:]) if background else torch.zeros_like(rescaled[:, 0])
    maps = torch.cat((rescaled[:, :count], rest[:, None]), 1)
    classes = request.mode != "soft" and request.rule in (finishing.TWO_CLASSES, finishing.CLEAREST)
    several = classes and request.rule == finishing.CLEAREST
    if several:
        maps = torch.cat((maps, _more_evidence(scoring, objects, known, bool(background))), 1)
    steps = record.defaults.propagation_steps if request.propagation_steps < 0 else request.propagation_steps
    if steps and (affinity := record.affinity) is not None:
        maps = resize_bilinear(maps, (affinity.height, affinity.width))
        maps = propagate(maps, affinity.matrix.to(maps), steps, scoring.range_, record.frames)
    named = bool(background)
    if classes:
        margins, level = (maps[:, :count], maps[:, count]) if named else (maps[:, :count], None)
        if several:
            margins, level = _clearest(maps, count, named, record.frames), None
        measured = finishing.two_classes(margins, level, record.frames)
        maps = torch.cat((measured, torch.full_like(maps[:, :1], NO_BACKGROUND)), 1)
        request, named = replace(request, rule="offset"), False

    def decide(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if request.smooth > 0:
            part = finishing.smooth(part, request.smooth)
        scores = part[:, :count]
        level = part[:, count] if named else torch.full_like(part[:, 0], NO_BACKGROUND)
        masks = _decide(scores, level, request)
        return masks, 1 - masks.amax(1), scores

    size = _size_of(record, request.size, request.latent_size)
    masks, uncovered, scores = _in_batches(maps, scoring, size, request.latent_size, place, decide)
    return MaskResult(
        masks,
        uncovered,
        scores,
        tuple(objects),
        tuple(phrase.label for phrase in background),
        rescaled[:, :count].to(masks.device),
        word_maps.to(masks.device) if each_word else None,
    )


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


def _clearest(maps: Tensor, count: int, named: bool, frames: int) -> Tensor:
    """The margins [B, K, h, w] that divide the pixels best.

    maps: scores of K objects, the background, and `_more_evidence`. Without words for the background, scores that are divided
    by the content words cannot stand alone: of a single phrase they are the same everywhere.
    """
    scores, level, plain, other = maps.tensor_split((count, count + 1, 2 * count + 1), 1)
    if named:
        return finishing.clearest((scores - level, scores, plain), (2, 1, 1), frames)
    return finishing.clearest((plain, scores - other, plain - other), (1, 2, 2), frames)


def resolve_request(request: MaskRequest, words: WordMap) -> tuple[list[Phrase], list[Phrase]]:
    """The objects and the background phrases of a request, found in a prompt. Raises a ValueError for a word not in it."""
    objects = resolve(request.phrases, words)
    return objects, _background(request.background, objects, words)


def _content_words(words: WordMap) -> list[Phrase]:
    """Every content word by itself; words that occur several times are taken one by one."""
    return [Phrase(word.name, (word.text,), word.positions) for word in words.words if word.content]


def _background(text: str, objects: Sequence[Phrase], words: WordMap) -> list[Phrase]:
    if text.strip() == AUTO and not any(word.text.casefold() == AUTO for word in words.words):
        return words.rest_phrases(objects)
    return resolve(text, words) if text.strip() else []


def _place(source: Attention | Maps | Scoring, place: Workplace | None) -> Workplace:
    """The place of work, which is the device of the source where none is given."""
    if place is not None:
        return place
    return Workplace(source.device if isinstance(source, Attention) else as_scoring(source).maps.maps.device)


def _size_of(record: Attention, size: Grid | None, latent: bool = False) -> Grid:
    """The size of masks; ``size`` None, or 0 on a side, is the size of the image."""
    height, width = (0, 0) if size is None else size
    if latent:
        return record.height, record.width
    return height or record.height * record.vae_scale, width or record.width * record.vae_scale


def _in_batches(
    maps: Tensor,
    scoring: Scoring,
    size: Grid,
    latent: bool,
    place: Workplace,
    work: Callable[[Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Finish the maps of a few samples at a time, and collect what ``work`` makes of them, for all samples or frames.

    ``work`` treats each sample by itself: for a video without refinement by its images it gets latent frames, because the
    frames that they decode to are equal, and what it returns is repeated.
    """
    record = scoring.maps.source
    images = [(step.image.shape[1], step.image.shape[2]) for step in scoring.steps if step.image is not None]
    pixels = max(height * width for height, width in (size, *images))
    each = maps.shape[1] * pixels * maps.element_size() * (record.temporal_compression if images else 1)
    most = max(1, (_BATCH if place.room is None else place.room // _COPIES) // each)
    count = maps.shape[0] if latent else maps.shape[0] // record.frames * record.images
    results: tuple[Tensor, ...] = ()
    for part in _parts(maps.shape[0], record.frames, most):
        made = work(_finish(maps[part], scoring, size, latent, part.start))
        if made[0].shape[0] == count:
            return made
        if not results:
            needed = sum(value[0].numel() * value.element_size() for value in made) * count
            stay = place.room is None or needed <= place.room // 2
            device = place.device if stay else place.results or record.device
            results = tuple(value.new_empty(count, *value.shape[1:], device=device) for value in made)
        rows = part if latent else _decoded(record, part)
        for whole, value in zip(results, made, strict=True):
            if latent or images:
                whole[rows] = value
            else:
                source = _latent_of(record, rows, whole.device) - part.start
                torch.index_select(value.to(whole.device), 0, source, out=whole[rows])
    return results


def _parts(samples: int, frames: int, most: int) -> Iterator[slice]:
    """Consecutive samples, at most so many at once. Frames of different videos come together only as whole videos."""
    unit = max(1, most // frames) * frames if frames <= most else frames
    for first in range(0, samples, unit):
        last = min(first + unit, samples)
        for start in range(first, last, max(most, 1)):
            yield slice(start, min(start + most, last))


def _decoded(record: Attention, part: slice) -> slice:
    """The decoded frames of consecutive samples."""

    def begin(sample: int) -> int:
        video, frame = divmod(sample, record.frames)
        return video * record.images + (1 + (frame - 1) * record.temporal_compression if frame else 0)

    return slice(begin(part.start), begin(part.stop))


def _finish(maps: Tensor, scoring: Scoring, size: Grid, latent: bool, first: int) -> Tensor:
    """Carry out the refinements, and resize to ``size``.

    maps: of consecutive samples from ``first`` on. ``latent``: whether the results are for samples, even after a refinement
    by the image, from which on they are for decoded frames.
    """
    record = scoring.maps.source
    part = slice(first, first + maps.shape[0])
    affinity = record.affinity
    cell = 0
    for step in scoring.steps:
        image = step.image
        if image is not None:
            if not cell:
                # The first refinement by the image; from here on maps have its size, and cover no more than it.
                cell = cell_of(maps, image)
                maps = resize_maps(expand_frames(maps, record, first), record, (image.shape[1], image.shape[2]))
            image = image if image.shape[0] == 1 else image[_decoded(record, part)]
            maps = apply(step.refinement, maps, image, cell=cell)
        elif affinity is not None:
            maps = apply(step.refinement, maps, None, replace(affinity, matrix=affinity.matrix[part], parts={}))
    if not cell:
        return resize_maps(maps, record, size)
    if latent:
        maps = latent_frames(maps, record, first)
    return F.interpolate(maps, size, mode="bilinear", antialias=True) if tuple(maps.shape[2:]) != size else maps


def for_samples(values: Tensor, record: Attention, samples: int) -> Tensor:
    """Values of a record, [B, ...], for so many samples: of a video, for its latent frames or for all of its frames."""
    return values if values.shape[0] == samples else expand_frames(values, record)


def expand_frames(maps: Tensor, record: Attention, first: int = 0) -> Tensor:
    """Maps of latent frames for the frames they decode to: one for the first, ``temporal_compression`` for each other.

    ``first``: the sample that the maps begin with, if they are not those of all samples.
    """
    if record.frames == 1:
        return maps
    decoded = _decoded(record, slice(first, first + maps.shape[0]))
    return maps[_latent_of(record, decoded, maps.device) - first]


def _latent_of(record: Attention, decoded: slice, device: torch.device) -> Tensor:
    """The sample that each of some decoded frames comes from."""
    frames = torch.arange(decoded.start, decoded.stop, device=device)
    each = record.temporal_compression
    return (frames % record.images + each - 1) // each + frames // record.images * record.frames


def latent_frames(maps: Tensor, record: Attention, first: int = 0) -> Tensor:
    """Maps of the frames of a video for its latent frames: the mean of those that a latent frame decodes to.

    ``first``: the latent frame that the maps begin with, of those of all videos; they are then of one video.
    """
    if record.frames == 1:
        return maps
    begin = first % record.frames == 0
    videos = maps.unflatten(0, (-1, record.images)) if begin and maps.shape[0] % record.images == 0 else maps[None]
    rest = videos[:, begin:].unflatten(1, (-1, record.temporal_compression)).mean(2)
    return torch.cat((videos[:, :begin], rest), 1).flatten(0, 1)


def resize_maps(maps: Tensor, record: Attention, size: Grid) -> Tensor:
    """Resize maps from the grid of the tokens to pixels.

    The tokens of a model that works on patches cover a little more than an odd-sized latent; the excess is cropped.
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
