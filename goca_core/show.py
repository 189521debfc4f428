"""Batches of pictures with their masks or heat maps drawn over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .picture import contact_sheet, heat, overlay, to_tensor
from .pipeline import as_scores, word_scores


def flatten(masks: Tensor) -> Tensor:
    """[B, K, H, W] -> [B * K, H, W], picture by picture: mask k of picture b is number b * K + k."""
    return masks.flatten(0, 1)


def overlay_batch(images: Tensor, source: Any, labels: str, opacity: float, words: Any = None) -> Tensor:
    """Pictures [B, H, W, 3] with masks [B * K, H, W] (picture by picture) in colours, or with heat maps of words.

    ``labels``: one name per line; for heat maps the phrases, empty for every content word. Returns [B, H', W', 3].
    Raises ValueError when there is not the same number of masks for each picture.
    """
    if isinstance(source, Tensor):
        return _stack([_masks(picture, part, labels, opacity) for picture, part in _pairs(images, source)])
    scores, names = word_scores(as_scores(source), labels, words)
    if scores.shape[0] != images.shape[0]:
        raise ValueError(
            f"There are {images.shape[0]} pictures but attention for {scores.shape[0]}; give the "
            "pictures made by the recorded sampler."
        )
    return _stack([_heat_maps(picture, part, names, opacity) for picture, part in zip(images, scores, strict=True)])


def _pairs(images: Tensor, masks: Tensor) -> list[tuple[Tensor, Tensor]]:
    masks = masks.reshape(-1, *masks.shape[-2:])
    count, rest = divmod(masks.shape[0], images.shape[0])
    if rest or not count:
        raise ValueError(
            f"{masks.shape[0]} masks cannot be shared out among {images.shape[0]} pictures; give each "
            "picture the same number."
        )
    return list(zip(images, masks.unflatten(0, (images.shape[0], count)), strict=True))


def _masks(picture: Tensor, masks: Tensor, labels: str, opacity: float) -> Tensor:
    names = [line for line in labels.splitlines() if line.strip()]
    if names and len(names) != len(masks):
        raise ValueError(
            f"There are {len(names)} labels for {len(masks)} masks of each picture; give one per line, or none."
        )
    return to_tensor(overlay(picture[..., :3], masks, names or None, opacity))


def _heat_maps(picture: Tensor, scores: Tensor, names: tuple[str, ...], opacity: float) -> Tensor:
    size = tuple(scores.shape[-2:])
    base = torch.nn.functional.interpolate(picture[..., :3].movedim(-1, 0)[None], size=size, mode="bilinear")[
        0
    ].movedim(0, -1)
    panels = [base * (1 - opacity) + to_tensor(heat(part, scale=1)) * opacity for part in scores]
    return to_tensor(contact_sheet([base, *panels], ["", *names], columns=min(4, len(panels) + 1)))


def _stack(pictures: list[Tensor]) -> Tensor:
    """Legends of different heights are padded with white at the bottom."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    padded = [
        torch.nn.functional.pad(p.movedim(-1, 0), (0, width - p.shape[1], 0, height - p.shape[0]), value=1.0)
        for p in pictures
    ]
    return torch.stack(padded).movedim(1, -1)
