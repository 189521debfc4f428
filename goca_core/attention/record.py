"""The record: what a sampling run leaves behind, and the global map made of it.

All sizes are carried explicitly (``height``, ``width``, in tokens); image tokens are in raster order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..heads import HEAD_METHODS
from ..layers import LAYER_METHODS
from ..words.word_map import WordMap, WordMapError

AUTO = "auto"


class AttentionError(ValueError):
    """A recording that cannot be used, or that was asked for something it does not hold."""


@dataclass(frozen=True)
class Defaults:
    """The paper's choices for a model family: what "auto" means for its recordings."""

    head: str
    layer: str
    rescale: str
    propagation_steps: int


@dataclass(frozen=True)
class Layer:
    """One attention layer, reduced.

    ``maps``: head method -> [B, N, T] cross-attention after head-wise aggregation (N = height * width, T kept tokens).
    ``scores``: layer method -> [B] agreement with the reference affinity, not normalised; NaN where it could not be
    measured (self-attention tiled or merged by another node).
    """

    name: str
    height: int
    width: int
    maps: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


@dataclass(frozen=True)
class Affinity:
    """Mean self-attention of the propagation layers, [B, N, N] on a grid of height x width tokens.

    ``parts``: that of each of them by name, where it was asked for (see ``weighted_affinity``).
    """

    height: int
    width: int
    matrix: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    """Which text tokens the columns of a map stand for.

    ``positions``: token positions in the conditioning, one for each column; ``rest``: whether one more column, the
    last, holds the sum of all other tokens; ``length``: tokens of the conditioning; ``words``: its word map, if known.
    """

    positions: tuple[int, ...]
    rest: bool
    length: int
    words: WordMap | None = None

    @property
    def count(self) -> int:
        """Number of columns."""
        return len(self.positions) + self.rest

    def columns(self, positions: Sequence[int]) -> list[int]:
        """Columns of token positions. Raises AttentionError if one of them was not recorded."""
        index = {position: column for column, position in enumerate(self.positions)}
        missing = [position for position in positions if position not in index]
        if missing:
            raise AttentionError(
                f"Tokens {missing} were not recorded, only {list(self.positions)}; sample again with a "
                "conditioning whose words include them."
            )
        return [index[position] for position in positions]

    def word_map(self, words: WordMap | None = None) -> WordMap:
        """The word map to find phrases with: ``words`` if given, else the recording's own. It must fit."""
        chosen = words if words is not None else self.words
        if chosen is None:
            raise WordMapError(
                "The recorded conditioning does not say which token is which word; encode the prompt with "
                "Encode Prompt (GoCA), or wire Prompt Words (GoCA) with the same CLIP and text into the words input."
            )
        chosen.check(self.length)
        return chosen


@dataclass(frozen=True)
class Attention:
    """Everything recorded in one sampling run for one conditioning.

    ``height`` x ``width``: size of the latent; ``vae_scale``: pixels of the picture per latent cell. ``sigmas``: noise
    levels of the evaluations that were merged. ``note``: what a user should know about how it was recorded. ``frames``: of
    the latent of a film; the samples are films x frames, film by film. ``temporal_compression``: pictures of a film per latent frame;
    the first frame is one picture.
    """

    family: str
    height: int
    width: int
    vae_scale: int
    layers: tuple[Layer, ...]
    tokens: Tokens
    defaults: Defaults
    affinity: Affinity | None = None
    sigmas: tuple[float, ...] = ()
    note: str = ""
    frames: int = 1
    temporal_compression: int = 1

    @property
    def batch(self) -> int:
        """Samples: pictures, or frames of all films."""
        return next(iter(self.layers[0].maps.values())).shape[0]

    @property
    def pictures(self) -> int:
        """Pictures of one film."""
        return 1 + (self.frames - 1) * self.temporal_compression

    @property
    def head_methods(self) -> tuple[str, ...]:
        return tuple(method for method in HEAD_METHODS if method in self.layers[0].maps)

    @property
    def layer_methods(self) -> tuple[str, ...]:
        return tuple(method for method in LAYER_METHODS if method == "vanilla" or method in self.layers[0].scores)

    def describe(self) -> str:
        """A few lines for people: what was recorded, and what should be known about it."""
        counts = Counter(f"{sigma:.3g}" for sigma in self.sigmas)
        levels = ", ".join(level if count == 1 else f"{level} ({count} times)" for level, count in counts.items())
        count, size = (
            self.batch // self.frames,
            f"{self.width * self.vae_scale} x {self.height * self.vae_scale} pixels",
        )
        film = f"{self.pictures} frames ({self.frames} of the latent) x " if self.frames > 1 else ""
        lines = [
            f"{count} x {film}{size}, {len(self.layers)} layers",
            f"recorded at noise level {levels}",
        ]
        return "\n".join([*lines, *filter(None, (self.note,))])

    def check_finite(self) -> None:
        """Raise AttentionError if the model produced numbers that are not finite."""
        for layer in self.layers:
            if not all(bool(torch.isfinite(m).all()) for m in layer.maps.values()):
                raise AttentionError(
                    f"The model's attention is not a number (NaN or infinity) from layer {layer.name} on, so "
                    "no mask can be made; check the weights, or run the model at a higher precision."
                )
