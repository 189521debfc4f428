"""Batches of pictures with their masks or heat maps drawn over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipeline import as_scoring, word_scores
from .drawing import contact_sheet, heat, overlay, to_tensor


def flatten(masks: Tensor) -> Tensor:
    """[B, K, H, W] -> [B * K, H, W], picture by picture: mask k of picture b is number b * K + k."""
    return masks.flatten(0, 1)


@dataclass(frozen=True)
class Layers:
    """What is drawn over pictures: ``maps`` [B, K, H, W] and their names (none for masks without labels).

    ``heat``: whether they are scores of words, to be shown one by one, or masks, to be shown together.
    """

    maps: Tensor
    names: tuple[str, ...]
    heat: bool


def to_show(images: Tensor, source: Any, labels: str, words: Any = None) -> Layers:
    """Masks [B * K, H, W] (picture by picture), or heat maps of words, for pictures [B, H, W, 3].

    ``labels``: one name per line; for heat maps the phrases, empty for every content word.
    Raises ValueError when there is not the same number of masks for each picture.
    """
    if isinstance(source, Tensor):
        masks = _shared_out(source, images.shape[0])
        names = tuple(line for line in labels.splitlines() if line.strip())
        if names and len(names) != masks.shape[1]:
            raise ValueError(
                f"There are {len(names)} labels for {masks.shape[1]} masks of each picture; give one per line, or none."
            )
        return Layers(masks, names, heat=False)
    scores, names = word_scores(as_scoring(source), labels, words)
    if scores.shape[0] != images.shape[0]:
        raise ValueError(
            f"There are {images.shape[0]} pictures but attention for {scores.shape[0]}; give the "
            "pictures made by the recorded sampler."
        )
    return Layers(scores, names, heat=True)


def draw(images: Tensor, shown: Layers, opacity: float) -> Tensor:
    """Pictures [B, H, W, 3] with masks in colours or with heat maps, [B, H', W', 3]."""
    panels = _heat_maps if shown.heat else _masks
    return _stack(
        [panels(picture, part, shown.names, opacity) for picture, part in zip(images, shown.maps, strict=True)]
    )


def overlay_batch(images: Tensor, source: Any, labels: str, opacity: float, words: Any = None) -> Tensor:
    """`draw` what `to_show` finds: pictures with masks in colours, or with heat maps of words."""
    return draw(images, to_show(images, source, labels, words), opacity)


def _shared_out(masks: Tensor, pictures: int) -> Tensor:
    """[B * K, H, W] -> [B, K, H, W]"""
    masks = masks.reshape(-1, *masks.shape[-2:])
    count, rest = divmod(masks.shape[0], pictures)
    if rest or not count:
        raise ValueError(
            f"{masks.shape[0]} masks cannot be shared out among {pictures} pictures; give each picture the same number."
        )
    return masks.unflatten(0, (pictures, count))


def _masks(picture: Tensor, masks: Tensor, names: tuple[str, ...], opacity: float) -> Tensor:
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
