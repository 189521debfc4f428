"""Per-pixel rescaling: from token maps to one score map per object (paper: per-pixel rescaling).

Start, end and padding tokens attract an amount of attention that differs from pixel to pixel. Dividing by the attention
on the content words removes this. Method names are those of the reference implementation; "+" stands for a blur.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .tensors import (
    RANGES,
    Range,
    check_choice,
    check_ndim,
    finite,
    gaussian_blur,
    index_on,
    maxnorm,
    minmax,
    stack_frames,
    unstack_frames,
    within,
)

_FACTOR_FLOOR = 1e-8  # a pixel with less attention on the content words says nothing about the objects


class _Recipe(NamedTuple):
    """The steps of a method, in this order: divide by the content mass, renormalise, multiply by raw, renormalise again."""

    divide: bool = False
    renorm: Literal["", "max", "blur"] = ""
    times_raw: bool = False
    again: bool = False


_RECIPES: dict[str, _Recipe] = {
    "raw": _Recipe(),
    "per-token renorm": _Recipe(renorm="max"),
    "per-token renorm+": _Recipe(renorm="blur"),
    "sum-1 rescaling": _Recipe(divide=True),
    "sum-1 rescaling + per-token renorm": _Recipe(divide=True, renorm="max"),
    "sum-1 rescaling + per-token renorm+": _Recipe(divide=True, renorm="blur"),
    "sum-1 rescaling + per-token renorm x raw": _Recipe(divide=True, renorm="max", times_raw=True),
    "sum-1 rescaling + per-token renorm+ x raw": _Recipe(divide=True, renorm="blur", times_raw=True),
    "sum-1 rescaling + per-token renorm+ x raw + renorm": _Recipe(
        divide=True, renorm="blur", times_raw=True, again=True
    ),
}

RESCALE_METHODS: tuple[str, ...] = tuple(_RECIPES)


def blur(maps: Tensor) -> Tensor:
    """Blur [..., h, w] with the Gaussian of the method, 5 x 5 with sigma 1.1 (borders as in `gaussian_blur`)."""
    return gaussian_blur(maps, 5, 1.1)


def rescale(
    maps: Tensor,
    objects: Sequence[Sequence[int]],
    content: Sequence[int],
    method: str = "sum-1 rescaling + per-token renorm+",
    pool: Literal["mean", "sum"] = "mean",
    range_: Range = "full",
    frames: int = 1,
) -> Tensor:
    """Compute one score map per object.

    maps: [B, T, h, w] from `layers.aggregate_layers`. objects: token positions of each of the K objects.
    content: token positions of all content words of the prompt, not only those of the objects.
    method: one of RESCALE_METHODS. pool: how the maps of an object's tokens are combined; the content mass is always a sum.
    range_: "robust" clips the most extreme 1% of a map's pixels at either end (`tensors.clip_tails`) before each blur and
    renormalisation, so that attention sinks do not set the scale. It has no effect on methods without renormalisation.
    frames: this many consecutive samples are the frames of one video. They share a scale, so that the map of an object
    becomes empty when the object leaves the video.

    Returns [B, K, h, w], in [0, 1] for methods that end with a renormalisation. Repeated positions count once. Pixels with
    a content mass of 1e-8 or less, and objects whose map is constant, are zero. Without content words the division is
    skipped, with a warning.
    Raises ValueError for an unknown method, pool or range, no objects, an object without tokens, or a position outside
    0..T-1.

    >>> maps = torch.tensor([[[[0.2, 0.1]], [[0.2, 0.3]], [[0.6, 0.6]]]])  # two words and the start token, 1 x 2 pixels
    >>> rescale(maps, [[0], [1]], [0, 1], "sum-1 rescaling").tolist()
    [[[[0.5, 0.25]], [[0.5, 0.75]]]]
    """
    check_choice("rescale method", method, RESCALE_METHODS)
    check_choice("pool", pool, ("mean", "sum"))
    check_choice("range", range_, RANGES)
    check_ndim("maps", maps, "B T h w")
    if not objects:
        raise ValueError("objects is empty: pass the token positions of at least one object.")
    tokens = maps.shape[1]
    object_ids = [_positions(ids, tokens, f"object {k}") for k, ids in enumerate(objects)]
    content_ids = _positions(content, tokens, "content")
    for k, ids in enumerate(object_ids):
        if not ids:
            raise ValueError(
                f"object {k} has no tokens: check that its phrase occurs in the prompt, or leave the object out."
            )
    recipe = _RECIPES[method]

    maps = finite(maps)
    if all(len(ids) == 1 for ids in object_ids):
        raw = maps[:, index_on(maps.device, [ids[0] for ids in object_ids])]
    else:
        groups = [maps[:, index_on(maps.device, ids)] for ids in object_ids]
        raw = torch.stack([group.mean(1) if pool == "mean" else group.sum(1) for group in groups], 1)
    result = raw
    if recipe.divide and content_ids:
        factor = maps[:, index_on(maps.device, content_ids)].sum(1, keepdim=True)
        known = factor > _FACTOR_FLOOR
        result = torch.where(known, raw / torch.where(known, factor, 1.0), 0.0)
    elif recipe.divide:
        warnings.warn(
            f"Rescale method {method!r} got no content tokens, so its division was skipped: "
            "pass the positions of the prompt's words as content.",
            stacklevel=2,
        )
    if recipe.renorm == "max":
        result = unstack_frames(maxnorm(within(stack_frames(result, frames), range_)), frames)
    elif recipe.renorm == "blur":
        result = _blurred(result, range_, frames)
    if recipe.times_raw:
        result = result * raw
    if recipe.again:
        result = _blurred(result, range_, frames)
    return result


def _blurred(maps: Tensor, range_: Range, frames: int) -> Tensor:
    smooth = blur(unstack_frames(within(stack_frames(maps, frames), range_), frames))
    return unstack_frames(minmax(stack_frames(smooth, frames)), frames)


def merge_background(maps: Tensor) -> Tensor:
    """Combine the rescaled maps of the background phrases by their maximum: [B, S, h, w] -> [B, h, w]; zero if S is 0."""
    check_ndim("maps", maps, "B S h w")
    maps = finite(maps)
    return maps.amax(1) if maps.shape[1] else maps.new_zeros(maps.shape[0], *maps.shape[2:])


def _positions(ids: Sequence[int], tokens: int, what: str) -> list[int]:
    """Remove repeated positions, and check each against the number of tokens."""
    unique = list(dict.fromkeys(int(i) for i in ids))
    outside = [i for i in unique if not 0 <= i < tokens]
    if outside:
        raise ValueError(
            f"{what} names token positions {outside}, outside 0..{tokens - 1}: use positions of this prompt's tokens."
        )
    return unique
