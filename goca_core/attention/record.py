"""The data classes of a recording, which holds the reduced attention of one sampling run.

All sizes are explicit (``height``, ``width``, in tokens). Image tokens are in raster order.
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
    """A recording cannot be used, or does not hold what was requested."""


@dataclass(frozen=True)
class Defaults:
    """The methods that "auto" stands for in a recording.

    ``rule``: background rule, one of ``masks.MASK_RULES``. Families give the paper's choices, where it has them.
    """

    head: str
    layer: str
    rescale: str
    propagation_steps: int
    rule: str = "offset"


@dataclass(frozen=True)
class Layer:
    """The reduced attention of one layer.

    ``maps``: head method -> [B, N, T] cross-attention after head-wise aggregation (N = height * width, T kept tokens).
    ``scores``: layer method -> [B] agreement with the reference affinity, not normalised; NaN where it could not be
    measured, because another node tiles or merges self-attention.
    """

    name: str
    height: int
    width: int
    maps: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


@dataclass(frozen=True)
class Affinity:
    """Mean self-attention of the propagation layers, [B, N, N] on a grid of height x width tokens.

    ``parts``: the self-attention of each layer, by its name, if it was requested (see ``weighted_affinity``).
    """

    height: int
    width: int
    matrix: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    """The text tokens of the columns of a map.

    ``positions``: token positions in the conditioning, one for each column. ``rest``: whether there is one more column, the
    last, with the sum of all other tokens. ``length``: number of tokens of the conditioning. ``words``: its word map, if
    known.
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
        """Find the columns of token positions. Raises AttentionError if one of them was not recorded."""
        index = {position: column for column, position in enumerate(self.positions)}
        missing = [position for position in positions if position not in index]
        if missing:
            raise AttentionError(
                f"Tokens {missing} were not recorded, only {list(self.positions)}; sample again with a "
                "conditioning whose words include them."
            )
        return [index[position] for position in positions]

    def word_map(self, words: WordMap | None = None) -> WordMap:
        """The word map to find phrases with: ``words`` if given, else that of the recording.

        Raises WordMapError if there is none, or if it belongs to another prompt or to a conditioning of another length.
        """
        word_map = words if words is not None else self.words
        if word_map is None:
            raise WordMapError(
                "The recorded conditioning does not say which token is which word; encode the prompt with CLIP Text Encode or "
                "Encode Prompt (GoCA), or connect Prompt Words (GoCA) with the same CLIP and text to the words input."
            )
        word_map.check(self.length)
        word_map.check_same(self.words)
        return word_map


@dataclass(frozen=True)
class Attention:
    """Everything recorded in one sampling run for one conditioning.

    ``height`` x ``width``: size of the latent. ``vae_scale``: image pixels per latent cell. ``sigmas``: noise levels of the
    evaluations that were averaged. ``note``: what a user should know about how it was recorded. ``frames``: latent frames of
    a video; the samples are then videos x frames, video by video. ``temporal_compression``: decoded frames per latent frame
    of a video; the first latent frame is decoded to a single one. ``frame_group``: number of latent frames after which the
    next one is decoded to a single one again, 0 = never.
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
    frame_group: int = 0

    @property
    def batch(self) -> int:
        """Number of samples: images, or latent frames of all videos."""
        return next(iter(self.layers[0].maps.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the recording is: on the CPU, except while semantic guidance uses it."""
        return next(iter(self.layers[0].maps.values())).device

    @property
    def images(self) -> int:
        """Number of frames of one video after decoding; 1 for an image."""
        return self.decoded(self.frames)

    def decoded(self, frames: int) -> int:
        """Number of frames that the first latent ``frames`` of a video decode to."""
        groups, rest = divmod(frames, self.frame_group) if self.frame_group else (0, frames)
        each = self.temporal_compression
        return groups * (1 + (self.frame_group - 1) * each) + (1 + (rest - 1) * each if rest else 0)

    @property
    def head_methods(self) -> tuple[str, ...]:
        return tuple(method for method in HEAD_METHODS if method in self.layers[0].maps)

    @property
    def layer_methods(self) -> tuple[str, ...]:
        return tuple(method for method in LAYER_METHODS if method == "vanilla" or method in self.layers[0].scores)

    def describe(self) -> str:
        """A summary of a few lines: what was recorded, and the note."""
        counts = Counter(f"{sigma:.3g}" for sigma in self.sigmas)
        levels = ", ".join(level if count == 1 else f"{level} ({count} times)" for level, count in counts.items())
        count, size = (
            self.batch // self.frames,
            f"{self.width * self.vae_scale} x {self.height * self.vae_scale} pixels",
        )
        video = f"{self.images} frames ({self.frames} latent frames) x " if self.frames > 1 else ""
        lines = [
            f"{count} x {video}{size}, {len(self.layers)} layers",
            f"recorded at noise level {levels}",
        ]
        return "\n".join([*lines, *filter(None, (self.note,))])

    def check_finite(self) -> None:
        """Raise AttentionError if the recorded attention holds values that are not finite."""
        maps = [(layer.name, values) for layer in self.layers for values in layer.maps.values()]
        # One answer for all of them, because an accelerator is waited for with each.
        fine = torch.stack([torch.isfinite(values).all() for _, values in maps]).tolist()
        for (name, _), is_finite in zip(maps, fine, strict=True):
            if not is_finite:
                raise AttentionError(
                    f"The model's attention is not a number (NaN or infinity) from layer {name} on, so "
                    "no mask can be made; check the weights, or run the model at a higher precision."
                )
