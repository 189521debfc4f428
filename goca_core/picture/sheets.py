"""Data for the browser: maps side by side in one small greyscale image, and the words of a prompt as plain data."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.global_map import Maps
from ..batches import for_samples, resize_maps
from ..pipeline import MaskResult, Scoring, stages
from ..tensors import Grid
from ..words.text import EMBEDDING
from ..words.word_map import WordMap
from .batch import OverlayLayers

# The longest side of one map or image that is sent, and the most pixels of one sheet. The browser shows maps at a few
# hundred pixels.
HEAT_SIDE, MASK_SIDE, IMAGE_SIDE = 64, 512, 1024
HEAT_AREA, MASK_AREA = 2**20, 2**22
_PIXELS = 2**22  # of maps that are reduced at once


@dataclass(frozen=True)
class Sheet:
    """The maps of ``names``, row by row in one image per sample: ``image`` [B, rows * height, columns * width].

    Values are in the middle of their 8-bit step, so that truncating instead of rounding gives the nearest step.
    """

    image: Tensor
    names: tuple[str, ...]
    columns: int
    height: int
    width: int

    def layout(self) -> dict[str, Any]:
        """Everything except the image, as plain data. ``digest`` is the same for the same maps."""
        digest = hashlib.blake2b((self.image * 255).byte().numpy().tobytes(), digest_size=16).hexdigest()
        sides = {"columns": self.columns, "height": self.height, "width": self.width}
        return {"names": list(self.names), **sides, "digest": digest}


def make_sheet(maps: Tensor, names: tuple[str, ...], side: int, area: int) -> Sheet:
    """Make a sheet of maps [B, K, h, w] in [0, 1], reduced to a longest side of ``side`` and a total area of ``area``.

    Raises ValueError unless there is one name for each map, and at least one map.
    """
    count = maps.shape[1]
    if count != len(names) or not count:
        raise ValueError(f"Got {len(names)} names for {count} maps: pass one for each, and at least one.")
    height, width = fitted((maps.shape[2], maps.shape[3]), side, area // count)
    # Reduced where they are, a few at a time: they are large, and the sheet is small.
    parts = maps.detach().split(max(1, _PIXELS // maps[0].numel()))
    small = torch.cat([_shrunk(part.float().nan_to_num(0.0).clamp_(0, 1), (height, width)) for part in parts]).cpu()
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = torch.cat((small, small.new_zeros(small.shape[0], rows * columns - count, height, width)), 1)
    image = tiles.unflatten(1, (rows, columns)).transpose(2, 3).reshape(-1, rows * height, columns * width)
    return Sheet(_steps(image), names, columns, height, width)


def fitted(size: Grid, side: int, area: int) -> Grid:
    """Reduce a size, with its proportions kept, to a longest side of ``side`` and an area of ``area``; at least one pixel."""
    height, width = size
    factor = min(1.0, side / max(size), math.sqrt(area / (height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))


def heat_sheet(result: MaskResult, scores: Scoring, words: WordMap | None = None) -> Sheet | None:
    """A map for each content word of the prompt, numbered where it is repeated; None when there are no such words.

    Words that share a token, such as characters of Chinese, have one map together.

    The samples are those of the result, which for a video are either its latent frames or its decoded frames.
    """
    known, record = scores.maps.tokens.word_map(words), scores.maps.source
    names = tuple(phrase.label for phrase, _ in known.single())
    if not names or result.word_maps is None:
        return None
    size = fitted(
        (record.height * record.vae_scale, record.width * record.vae_scale), HEAT_SIDE, HEAT_AREA // len(names)
    )
    maps = for_samples(resize_maps(result.word_maps, record, size), record, result.masks.shape[0])
    return make_sheet(maps, names, HEAT_SIDE, HEAT_AREA)


def mask_sheet(result: MaskResult) -> Sheet:
    """Make a sheet of the masks of a result, in the order of the phrases."""
    return make_sheet(result.masks, result.labels, MASK_SIDE, MASK_AREA)


def step_sheet(result: MaskResult, scores: Scoring) -> Sheet:
    """How the masks came about: a map of each phrase as recorded, then one of each rescaled, then one of each at last."""
    record, count = scores.maps.source, 3 * len(result.labels)
    size = fitted((record.height * record.vae_scale, record.width * record.vae_scale), HEAT_SIDE, HEAT_AREA // count)
    maps = stages(scores, result, size)
    return make_sheet(maps.flatten(1, 2), 3 * result.labels, HEAT_SIDE, HEAT_AREA)


def layer_weights_table(result: MaskResult, maps: Maps) -> dict[str, Any]:
    """The weight of each layer in the maps, for each sample of the result. ``grids``: width and height in tokens."""
    layers = maps.source.layers
    weights = for_samples(maps.weights, maps.source, result.masks.shape[0])
    return {
        "names": [layer.name for layer in layers],
        "grids": [[layer.width, layer.height] for layer in layers],
        "weights": [[round(weight, 5) for weight in row] for row in weights.tolist()],
    }


def overlay_sheet(layers: OverlayLayers) -> Sheet:
    """Make a sheet of the masks or heat maps of an overlay. Masks without names get numbers."""
    names = layers.names or tuple(str(number) for number in range(1, layers.maps.shape[1] + 1))
    return make_sheet(layers.maps, names, *((HEAT_SIDE, HEAT_AREA) if layers.heat else (MASK_SIDE, MASK_AREA)))


def thumbnail(images: Tensor) -> Tensor:
    """Reduce images [B, H, W, 3 or more] to [B, h, w, 3] with a longest side of IMAGE_SIDE."""
    rgb = images[..., :3].detach().float().cpu().nan_to_num(0.0).clamp(0, 1).movedim(-1, 1)
    size = fitted((rgb.shape[2], rgb.shape[3]), IMAGE_SIDE, IMAGE_SIDE**2)
    return _steps(_shrunk(rgb, size)).movedim(1, -1)


def word_table(words: WordMap) -> dict[str, Any]:
    """The words of a prompt with their tokens and sub-word pieces, as plain data. ``keys``: spellings that name a word.

    ``map``: the name of its heat map, which words that share a token have together.
    """
    maps = {index: phrase.label for phrase, group in words.single() for index in group}
    texts = {piece.position: piece.text for piece in words.pieces}
    return {
        "text": words.text,
        "encoder": words.encoder,
        "length": words.length,
        "words": [
            {
                "text": word.text,
                "name": name,
                "keys": [list(key) for key in word.keys],
                "tokens": list(word.positions),
                # Embedding vectors have no text.
                "pieces": [] if word.text.startswith(EMBEDDING) else [texts[p] for p in word.positions],
                "content": word.content,
                "map": maps.get(index, name),
            }
            for index, (name, word) in enumerate(zip(words.names(), words.words, strict=True))
        ],
    }


def _shrunk(maps: Tensor, size: Grid) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else torch.nn.functional.interpolate(maps, size, mode="area")


def _steps(values: Tensor) -> Tensor:
    return (values * 255).round_().add_(0.5).div_(255)
