"""Predicted classes from the score maps of one image, and the mIoU from the counts of all images.

Follows the evaluation of the reference implementation: scores are resized to the label, a class without a map scores
zero everywhere, the background competes by its rule, and the first maximum wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks import background_level, resize_scores
from ..metrics import Confusion
from ..tensors import Grid


def predict(
    scores: Tensor,
    background: Tensor | None,
    ids: Sequence[int],
    classes: int,
    size: Grid,
    rule: str,
    thetas: Sequence[float],
) -> Tensor:
    """Return the predicted class of every pixel, int16 [len(thetas), H, W], for all thresholds in one pass.

    scores: [K, h, w]; K may be 0. background: [h, w] or None for zeros. ids: class id of each map, from 1 on, in any order.
    classes: number of classes, including the background. size: (H, W) of the label. rule: one of masks.BACKGROUND_RULES.
    Gives the same result as `masks.assign` on one map per class, but never builds the maps that are all zero. NaN counts
    as 0.
    Raises ValueError for duplicate or invalid class ids, and for shapes that do not fit.
    """
    if scores.ndim != 3 or len(ids) != len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)} for {len(ids)} class ids: expected [K, h, w], K ids.")
    if classes < 2:
        raise ValueError(f"classes is {classes}: expected the background and at least one other class, so 2 or more.")
    if len(set(ids)) != len(ids) or not all(0 < number < classes for number in ids):
        raise ValueError(f"The class ids are {list(ids)}: expected distinct ids from 1 to {classes - 1}.")
    if background is not None and background.shape != scores.shape[1:]:
        raise ValueError(
            f"background is {tuple(background.shape)}: expected {tuple(scores.shape[1:])}, the size of the scores."
        )
    order = sorted(range(len(ids)), key=lambda place: ids[place])
    back = scores.new_zeros(1, *scores.shape[1:]) if background is None else background.to(scores)[None]
    maps = resize_scores(torch.cat((scores[order], back))[None], size)
    objects, level_map = maps[:, :-1], maps[:, -1]
    number, value = _best(objects[0], [ids[place] for place in order], classes)
    levels = (background_level(objects, level_map, rule, theta)[0] for theta in thetas)
    return torch.stack([number.masked_fill(level >= value, 0) for level in levels])


def _best(maps: Tensor, ids: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    """Class (int16) and value of the first maximum over all classes except the background, each [H, W].

    maps: [K, H, W], in ascending order of their ids. A class without a map is zero everywhere, so only the first of them
    can win.
    """
    absent = next((number for number in range(1, classes) if number not in ids), None)
    nothing = maps.new_zeros(maps.shape[1:])
    channels = [*zip(ids, maps, strict=True), *([] if absent is None else [(absent, nothing)])]
    channels.sort(key=lambda channel: channel[0])
    number = torch.full_like(nothing, channels[0][0], dtype=torch.int16)
    value = channels[0][1]
    for other, found in channels[1:]:  # argmax over the first axis is far slower on a CPU
        better = found > value
        number.masked_fill_(better, other)
        value = torch.where(better, found, value)
    return number, value


def mean_iou(counts: Confusion, scored: Sequence[int]) -> float:
    """Mean IoU over the classes that the data set scores (`Dataset.scored`). A class that never occurs counts as 0."""
    values = counts.iou()[list(scored)]
    return float(values.mean()) if values.size else 0.0
