"""Regional prompts: which prompt belongs to which mask, how much each counts at each pixel, and one conditioning of all.

The result is what ComfyUI's own Conditioning Set Mask and Conditioning Combine make: entries with a mask, whose
predictions the sampler averages by weight at each pixel. Nothing here knows ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .masks import smooth
from .tensors import finite, resize_bilinear
from .words.text import fold
from .words.word_map import parse_phrases

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: a list of [tensor, dictionary]."""

# A prompt that counts less than this everywhere is left out: it would cost a forward pass at each step.
_NOTHING = 1e-6
# ComfyUI compares noise levels so that at the very edge of two ranges both would work.
_EDGE = 1e-5
# Keys of an entry that say when a schedule of text encoders lets it work.
_SCHEDULE = ("clip_start_percent", "clip_end_percent")


class RegionalError(ValueError):
    """Prompts, labels and masks that do not fit together."""


# -- prompts --------------------------------------------------------------------------------------------------------


def parse_labels(text: str) -> tuple[str, ...]:
    """One label per line, as Mask From Tokens writes them. Raises RegionalError when one is there twice."""
    return check_labels([line.strip() for line in text.splitlines() if line.strip()])


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as they are. Raises RegionalError when one is there twice."""
    names = [_name(label) for label in labels]
    for label, name in zip(labels, names, strict=True):
        if names.count(name) > 1:
            raise RegionalError(f'The label "{label}" is there twice; give each mask a label of its own.')
    return tuple(labels)


def parse_prompts(text: str, labels: Sequence[str]) -> dict[str, str]:
    """The prompt of each label that has one.

    Lines are either all ``label: prompt``, in any order, or all bare prompts in the order of the labels. Empty lines and
    empty prompts count for nothing. Raises RegionalError with one sentence for a label that is not there or given twice,
    more prompts than labels, and a mixture of both forms.
    """
    known = {_name(label): label for label in labels}
    lines = [_split(line.strip(), known) for line in text.splitlines() if line.strip()]
    bare = [prompt for label, prompt in lines if label is None]
    if bare and len(bare) < len(lines):
        raise RegionalError(
            f'The line "{_short(bare[0])}" has no label, others have; write every line as "label: prompt", or all of '
            f"them without a label, in this order: {_listed(labels)}."
        )
    if len(bare) > len(labels):
        raise RegionalError(f"There are {len(bare)} prompts for {len(labels)} masks; these are: {_listed(labels)}.")
    if bare:
        return dict(zip(labels, bare, strict=False))
    found: dict[str, str] = {}
    for label, prompt in lines:
        assert label is not None
        if label in found:
            raise RegionalError(f'There are two prompts for "{label}"; join them into one line.')
        found[label] = prompt
    return {label: prompt for label, prompt in found.items() if prompt}


def _split(line: str, known: Mapping[str, str]) -> tuple[str | None, str]:
    """Label and prompt of a line; None for a line without a label."""
    # Weights, embeddings and labels themselves may hold colons, so the label is looked for rather than cut off.
    for colon in re.finditer(":", line):
        label = known.get(_name(line[: colon.start()]))
        if label is not None:
            return label, line[colon.end() :].strip()
    meant = re.match(r"([^:(<]+):(?:\s|$)", line)
    if meant:
        raise RegionalError(
            f'"{_short(meant[1].strip())}" is none of the masks, which are: {_listed(tuple(known.values()))}; '
            "change the label, or add the phrase to Mask From Tokens."
        )
    return None, line


def _name(label: str) -> str:
    """The spelling under which two labels are the same: without case, extra spaces and escapes of commas."""
    parts = parse_phrases(label)
    return ", ".join(" ".join(fold(part).split()) for part in parts[0]) if parts else ""


def _listed(labels: Sequence[str]) -> str:
    return "; ".join(labels) if any("," in label for label in labels) else ", ".join(labels)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


# -- weights --------------------------------------------------------------------------------------------------------


def count_labels(masks: Tensor, labels: Sequence[str], background: Tensor | None = None) -> tuple[str, ...]:
    """The labels of masks [B * K, H, W], image by image: the given ones, or the numbers from 1 on.

    Without labels, ``background`` says how many images there are (one without it). Raises RegionalError
    when they cannot be divided among the labels.
    """
    total = masks.reshape(-1, *masks.shape[-2:]).shape[0]
    if labels:
        if total == 0 or total % len(labels):
            raise RegionalError(
                f"{total} masks cannot be divided among {len(labels)} labels ({_listed(labels)}); wire masks and "
                "labels of the same Mask From Tokens."
            )
        return tuple(labels)
    images = 1 if background is None else background.reshape(-1, *background.shape[-2:]).shape[0]
    if total == 0 or total % images:
        raise RegionalError(
            f"{total} masks cannot be divided among the {images} images of the background; wire in the labels too."
        )
    return tuple(str(number + 1) for number in range(total // images))


def region_weights(masks: Tensor, count: int, background: Tensor | None = None, feather: float = 0.0) -> Tensor:
    """How much each mask counts at each pixel, and last how much the background does: [B, K + 1, H, W], summing to one.

    masks: [B * K, H, W] in 0..1, image by image, with ``count`` = K. background: [B or 1, h, w], or None for what the
    masks leave over; it is resized to the masks. Overlapping masks share a pixel; what nothing covers is
    background. feather: width of the seams in pixels, a Gaussian of half that deviation over all weights alike, so that
    they still sum to one. Raises RegionalError when the background is for another number of images.
    """
    parts = finite(masks.reshape(-1, *masks.shape[-2:])).clamp(0, 1).unflatten(0, (-1, count))
    rest = 1 - parts.sum(1, keepdim=True) if background is None else _fit(background, parts)
    parts = torch.cat((parts, rest.clamp(0, 1)), 1)
    total = parts.sum(1, keepdim=True)
    parts = torch.cat((parts[:, :-1], torch.where(total > 0, parts[:, -1:], 1.0)), 1)
    parts = parts / torch.where(total > 0, total, 1.0)
    if feather > 0:
        parts = smooth(parts, feather / 2)
        parts = parts / parts.sum(1, keepdim=True)
    return parts


def _fit(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [b, h, w] as [B, 1, H, W] in the batch, size, precision and on the device of ``like``."""
    mask = finite(mask.reshape(-1, 1, *mask.shape[-2:])).to(like)
    if mask.shape[0] not in (1, like.shape[0]):
        raise RegionalError(
            f"There are masks for {like.shape[0]} images but a background for {mask.shape[0]}; wire both from the same "
            "Mask From Tokens."
        )
    return resize_bilinear(mask, (like.shape[-2], like.shape[-1])).expand(like.shape[0], -1, -1, -1)


# -- conditioning ---------------------------------------------------------------------------------------------------


def compose(
    base: Conditioning,
    prompts: Sequence[Conditioning | None],
    parts: Tensor,
    strength: float = 1.0,
    to_bounds: bool = False,
) -> Conditioning:
    """One conditioning in which each mask follows its own prompt and the rest of the image the base.

    prompts: the encoded prompt of each of the K masks, None where there is none; the same object for several masks makes
    one region of them. parts: [B, K + 1, H, W] from `region_weights`. strength: weight of the own prompt within its mask, 0..1; the
    base has the rest, so weights sum to one at every pixel. to_bounds: sample each prompt only within the bounds of its
    mask (ComfyUI's "mask bounds").

    Everything else that the base says (ControlNet, guidance, sizes, time ranges, an earlier mask) holds for every region.
    Prompts and base that cover nothing are left out. The inputs stay as they are.
    """
    found = regions_of(prompts, parts)
    rest = (1 - strength * sum((weight for weight, _ in found), torch.zeros_like(parts[:, 0]))).clamp_min(0)
    regions = [(weight, prompt) for weight, prompt in found if is_visible(weight * strength)]
    if not regions:
        return [[tensor, dict(extra)] for tensor, extra in base]
    result = []
    for tensor, extra in base:
        if extra.get("default"):  # ComfyUI gives it what all others leave, which is just this
            result.append([tensor, dict(extra)])
        elif is_visible(rest):
            result.append([tensor, {**extra, **_masked(extra, rest, 1.0, bool(extra.get("set_area_to_bounds")))}])
    for _, extra in base:
        for weight, prompt in regions:
            bounds = to_bounds or bool(extra.get("set_area_to_bounds"))
            for own_tensor, own in merge_with_base(extra, prompt):
                result.append([own_tensor, {**own, **_masked(extra, weight, strength, bounds)}])
    return result


def delayed(base: Conditioning, regional: Conditioning, start: float) -> Conditioning:
    """The base alone up to ``start`` (a fraction of sampling, 0..1), from there on the regional prompts.

    Time ranges that entries have already are narrowed; an entry whose range is left empty goes.
    """
    if start <= 0:
        return regional
    return [*_during(base, 0.0, start - _EDGE), *_during(regional, start, 1.0)]


def _during(conditioning: Conditioning, start: float, end: float) -> Iterator[list[Any]]:
    for tensor, extra in conditioning:
        times = {
            "start_percent": max(start, extra.get("start_percent", 0.0)),
            "end_percent": min(end, extra.get("end_percent", 1.0)),
        }
        if times["start_percent"] < times["end_percent"]:
            yield [tensor, {**extra, **times}]


def regions_of(prompts: Sequence[Conditioning | None], parts: Tensor) -> list[tuple[Tensor, Conditioning]]:
    """Mask [B, H, W] and prompt of each region, each prompt once."""
    found: dict[int, tuple[Tensor, Conditioning]] = {}
    for place, prompt in enumerate(prompts):
        if prompt is not None:
            before = found.get(id(prompt))
            found[id(prompt)] = (parts[:, place] if before is None else before[0] + parts[:, place], prompt)
    return list(found.values())


def is_visible(weight: Tensor) -> bool:
    """Whether a prompt with this weight is worth a forward pass."""
    return bool((weight > _NOTHING).any())


def merge_with_base(base: Mapping[str, Any], prompt: Conditioning) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The entries of a prompt with what the base says beside its text."""
    kept = {key: value for key, value in base.items() if key != "default"}
    for tensor, own in prompt:
        merged = {**kept, **own}
        if all(key in extra for key in _SCHEDULE for extra in (base, own)):
            # Both are pieces of a schedule: they meet where their times overlap.
            start, end = max(base[_SCHEDULE[0]], own[_SCHEDULE[0]]), min(base[_SCHEDULE[1]], own[_SCHEDULE[1]])
            if start >= end:
                continue
            merged |= dict(zip(_SCHEDULE, (start, end), strict=True))
        yield tensor, merged


def _masked(base: Mapping[str, Any], weight: Tensor, strength: float, bounds: bool) -> dict[str, Any]:
    """The keys of Conditioning Set Mask, within the mask that the base may have already."""
    before = base.get("mask")
    if before is not None:
        earlier = before if before.ndim > 2 else before[None]
        if weight.shape[0] not in (1, earlier.shape[0]) and earlier.shape[0] != 1:
            raise RegionalError(
                f"There are masks for {weight.shape[0]} images, but the base conditioning has a mask for "
                f"{earlier.shape[0]}; use the same number."
            )
        earlier = finite(earlier.reshape(-1, 1, *earlier.shape[-2:])).to(weight)
        weight = weight * resize_bilinear(earlier, (weight.shape[-2], weight.shape[-1]))[:, 0]
    return {"mask": weight, "set_area_to_bounds": bounds, "mask_strength": strength * base.get("mask_strength", 1.0)}
