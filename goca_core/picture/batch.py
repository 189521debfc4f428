"""Batches of images with masks or heat maps drawn over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batches import Workplace
from ..pipeline import as_scoring, word_scores
from .drawing import contact_sheet, heat, overlay, to_tensor

ORDERS = ("image by image", "phrase by phrase")


def flatten(masks: Tensor, order: str = ORDERS[0]) -> Tensor:
    """[B, K, H, W] -> [B * K, H, W], by default image by image: mask k of image b is number b * K + k, else number k * B + b."""
    if order not in ORDERS:
        raise ValueError(f'The order "{order}" is unknown; choose one of: {", ".join(ORDERS)}.')
    return (masks if order == ORDERS[0] else masks.transpose(0, 1)).flatten(0, 1)


@dataclass(frozen=True)
class OverlayLayers:
    """What to draw over images: ``maps`` [B, K, H, W] and their names (none for masks without labels).

    ``heat``: whether the maps are scores of words, drawn one per panel, or masks, drawn together.
    """

    maps: Tensor
    names: tuple[str, ...]
    heat: bool


def overlay_layers(
    images: Tensor, source: Any, labels: str, words: Any = None, place: Workplace | None = None
) -> OverlayLayers:
    """Prepare masks or heat maps of words for images [B, H, W, 3].

    ``source``: masks [B * K, H, W], image by image, or attention, maps or scores, of which heat maps are made. ``labels``:
    one name per line for masks; for heat maps the phrases, empty for every content word. ``place``: where heat maps are made.
    Raises ValueError when images do not have the same number of masks, or when images and attention do not match.
    """
    if isinstance(source, Tensor):
        masks = _masks_per_image(source, images.shape[0])
        names = tuple(line for line in labels.splitlines() if line.strip())
        if names and len(names) != masks.shape[1]:
            raise ValueError(
                f"There are {len(names)} labels for {masks.shape[1]} masks per image; write one label per line, or none."
            )
        return OverlayLayers(masks, names, heat=False)
    scoring = as_scoring(source, place.device if place else None)
    scores, names = word_scores(scoring, labels, words, place)
    if scores.shape[0] != images.shape[0]:
        raise ValueError(
            f"There are {images.shape[0]} images but attention for {scores.shape[0]}; use the images from the "
            "recorded sampler."
        )
    if place is not None and place.results is not None:
        scores = scores.to(place.results)
    return OverlayLayers(scores, names, heat=True)


def draw(images: Tensor, layers: OverlayLayers, opacity: float) -> Tensor:
    """Draw coloured masks or heat maps over images [B, H, W, 3]. Returns [B, H', W', 3]."""
    panels = _heat_maps if layers.heat else _masks
    return _stack([panels(image, maps, layers.names, opacity) for image, maps in zip(images, layers.maps, strict=True)])


def _masks_per_image(masks: Tensor, images: int) -> Tensor:
    """[B * K, H, W] -> [B, K, H, W]"""
    masks = masks.reshape(-1, *masks.shape[-2:])
    count, rest = divmod(masks.shape[0], images)
    if rest or not count:
        raise ValueError(
            f"{masks.shape[0]} masks cannot be divided among {images} images; use the same number of masks for each image."
        )
    return masks.unflatten(0, (images, count))


def _masks(image: Tensor, masks: Tensor, names: tuple[str, ...], opacity: float) -> Tensor:
    return to_tensor(overlay(image[..., :3], masks, names or None, opacity))


def _heat_maps(image: Tensor, scores: Tensor, names: tuple[str, ...], opacity: float) -> Tensor:
    channels = image[..., :3].movedim(-1, 0)[None]
    base = F.interpolate(channels, tuple(scores.shape[-2:]), mode="bilinear")[0].movedim(0, -1)
    panels = [base * (1 - opacity) + to_tensor(heat(part, scale=1)) * opacity for part in scores]
    return to_tensor(contact_sheet([base, *panels], ["", *names], columns=min(4, len(panels) + 1)))


def _stack(images: list[Tensor]) -> Tensor:
    """Stack images whose legends differ in height; smaller ones are padded with white at the bottom."""
    height, width = (max(p.shape[axis] for p in images) for axis in (0, 1))
    padded = [F.pad(p.movedim(-1, 0), (0, width - p.shape[1], 0, height - p.shape[0]), value=1.0) for p in images]
    return torch.stack(padded).movedim(1, -1)
