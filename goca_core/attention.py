"""The record: what a sampling run leaves behind, and the global map made of it.

All sizes are carried explicitly (``height``, ``width``, in tokens); image tokens are in raster order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .heads import HEAD_METHODS
from .layers import LAYER_CHOICES, LAYER_METHODS, MASS_PRESERVING, aggregate_layers, normalise_scores
from .refinement import Step
from .resize import Range
from .words import WordMap, WordMapError

AUTO = "auto"


class AttentionError(ValueError):
    """A recording that cannot be used, or that was asked for something it does not hold."""


@dataclass(frozen=True)
class Defaults:
    """The paper's choices for a model family: what "auto" means for its recordings."""

    head: str
    layer: str
    rescale: str
    order: int


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

    def named(self, words: WordMap | None = None) -> WordMap:
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

    ``height`` x ``width``: size of the latent; ``scale``: pixels of the picture per latent cell. ``sigmas``: noise
    levels of the evaluations that were merged. ``note``: what a user should know about how it was recorded. ``frames``: of
    the latent of a film; the samples are films x frames, film by film. ``stride``: pictures of a film per latent frame;
    the first frame is one picture.
    """

    family: str
    height: int
    width: int
    scale: int
    layers: tuple[Layer, ...]
    tokens: Tokens
    defaults: Defaults
    affinity: Affinity | None = None
    sigmas: tuple[float, ...] = ()
    note: str = ""
    frames: int = 1
    stride: int = 1

    @property
    def batch(self) -> int:
        """Samples: pictures, or frames of all films."""
        return next(iter(self.layers[0].maps.values())).shape[0]

    @property
    def pictures(self) -> int:
        """Pictures of one film."""
        return 1 + (self.frames - 1) * self.stride

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
        count, size = self.batch // self.frames, f"{self.width * self.scale} x {self.height * self.scale} pixels"
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


@dataclass(frozen=True)
class Maps:
    """The global map: ``maps`` [B, T, h, w], not negative, sums to one over T at each pixel; and where it came from."""

    maps: Tensor
    source: Attention
    weights: Tensor = field(repr=False)

    @property
    def tokens(self) -> Tokens:
        return self.source.tokens


@dataclass(frozen=True)
class Scores:
    """A rescaling chosen but not yet done, and refinements after it: they need the objects, which the mask node knows.

    ``range_``: of the stretch in the rescaling and after propagation (see ``resize.stretch``). ``steps``: refinements in
    their order, after propagation.
    """

    maps: Maps
    method: str
    pool: Literal["mean", "sum"] = "mean"
    range_: Range = "full"
    steps: tuple[Step, ...] = ()


def _chosen(
    what: str, method: str, default: str, available: Sequence[str], known: Sequence[str], choices: Sequence[str] = ()
) -> str:
    """``choices``: what to offer where that is more than what can be recorded."""
    method = default if method == AUTO else method
    if method not in known:
        raise AttentionError(f"Unknown {what} method {method!r}: use one of {', '.join(choices or known)}.")
    if method not in available:
        raise AttentionError(
            f"The {what} method {method!r} was not recorded ({', '.join(available)} were); set "
            f"{what}_methods to 'all' in Record Attention or Segment Image and run again."
        )
    return method


def layer_weights(attention: Attention, method: str = AUTO) -> Tensor:
    """Weights [B, L] of the layers, normalised. A layer that could not be measured counts as the mean of the others.

    "mass-preserving": the dot-product score as if resizing self-attention to the reference's grid had kept the sum of its
    rows. Resizing keeps values, so rows that summed to one sum to Nr / Nl afterwards, and the score, linear in them, is too
    large by as much. Nr is the same for all layers and goes away when the weights are normalised.
    All frames of a film have the mean of theirs, so that no layer comes and goes with time.
    """
    method = attention.defaults.layer if method == AUTO else method
    kept = method == MASS_PRESERVING
    method = "dot-product similarity" if kept else method
    method = _chosen("layer", method, attention.defaults.layer, attention.layer_methods, LAYER_METHODS, LAYER_CHOICES)
    if method == "vanilla":
        scores = torch.ones(attention.batch, len(attention.layers))
    else:
        scores = torch.stack([layer.scores[method].float() for layer in attention.layers], -1)
        films = scores.unflatten(0, (-1, attention.frames)).nanmean(1, keepdim=True)
        scores = films.expand(-1, attention.frames, -1).flatten(0, 1)
    if kept:
        scores = scores * torch.tensor([float(layer.height * layer.width) for layer in attention.layers])
    mean = torch.nanmean(scores, -1, keepdim=True)
    return normalise_scores(torch.where(torch.isnan(scores), mean, scores))


def weighted_affinity(attention: Attention, method: str = "dot-product similarity") -> Affinity:
    """Self-attention for propagation with each of its layers weighted by its score, in place of their plain mean.

    Not of the paper. Raises AttentionError when the recording holds the mean alone, or not this layer method.
    """
    affinity = attention.affinity
    parts = {} if affinity is None else affinity.parts
    layers = tuple(layer for layer in attention.layers if layer.name in parts)
    if affinity is None or not layers:
        raise AttentionError(
            "The recording does not hold the self-attention of each propagation layer, which weighting them by score needs; "
            "record it with affinity_parts."
        )
    weights = layer_weights(replace(attention, layers=layers), method)
    matrix = torch.zeros_like(affinity.matrix, dtype=torch.float32)
    for layer, weight in zip(layers, weights.unbind(-1), strict=True):
        matrix.addcmul_(parts[layer.name].float(), weight.to(matrix)[:, None, None])
    return replace(affinity, matrix=matrix)


def aggregate(attention: Attention, head_method: str = AUTO, layer_method: str = AUTO) -> Maps:
    """The paper's auto aggregation (section on layer-wise aggregation): all layers of a recording into one map.

    The map's size is that of the finest recorded layer. Raises AttentionError for a method that was not recorded or a
    recording that is not finite.
    """
    head = _chosen("head", head_method, attention.defaults.head, attention.head_methods, HEAD_METHODS)
    attention.check_finite()
    weights = layer_weights(attention, layer_method)
    grids = [(layer.height, layer.width) for layer in attention.layers]
    size = max(grids, key=lambda grid: grid[0] * grid[1])
    maps = aggregate_layers([layer.maps[head] for layer in attention.layers], grids, weights, size)
    return Maps(maps, attention, weights)


def save(path: str, attention: Attention, half: bool = False) -> None:
    """Write a recording to a safetensors file (see ``storage.save``)."""
    from . import storage  # here, because it needs the classes above

    storage.save(path, attention, half)


def load(path: str) -> Attention:
    """Read a recording from a safetensors file (see ``storage.load``)."""
    from . import storage

    return storage.load(path)
