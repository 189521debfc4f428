"""Random recordings, for the tests of what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from goca_core.attention.record import Affinity, Attention, Defaults, Layer, Tokens
from goca_core.capture.reduce.layer_scores import KeptRows
from goca_core.capture.reduce.self_maps import SelfMaps
from goca_core.tensors import Grid
from goca_core.words.build import Token, build
from goca_core.words.word_map import WordMap

DEFAULTS = Defaults("dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 2)
GRIDS = (("input.1.0", 4, 6), ("middle.1.0", 2, 3), ("output.3.0", 4, 6))


def words_of(text: str, length: int = 12) -> WordMap:
    """One token for each word, between a start and an end."""
    tokens = [Token(0, 1, "<start>", "start")]
    at = 0
    for number, word in enumerate(text.split(), start=1):
        at = text.index(word, at)
        tokens.append(Token(number, number + 1, word, "word", at, at + len(word)))
        at += len(word)
    tokens += [Token(place, 0, "<end>", "end") for place in range(len(tokens), length)]
    return build(text, text, "clip-l", length, tokens)


def recording(
    seed: int = 0,
    batch: int = 2,
    text: str | None = "a red cat on grass",
    affinity: bool = True,
    parts: bool = False,
) -> Attention:
    """A recording of a latent of 4 x 6 cells with layers on two grids. ``parts``: of the affinity, for its first and last."""
    generator = torch.Generator().manual_seed(seed)
    words = None if text is None else words_of(text)
    positions = tuple(range(12)) if words is None else tuple(range(len(words.words) + 1))
    tokens = Tokens(positions, words is not None, 12, words)

    def chances(*shape: int) -> Tensor:
        return torch.softmax(torch.randn(*shape, generator=generator) * 2, -1)

    layers = tuple(
        Layer(
            name,
            height,
            width,
            {method: chances(batch, height * width, tokens.count) for method in ("average", DEFAULTS.head)},
            {DEFAULTS.layer: torch.rand(batch, generator=generator) + 0.1},
        )
        for name, height, width in GRIDS
    )
    spread = Affinity(4, 6, chances(batch, 24, 24)) if affinity else None
    if parts:
        own = {layers[number].name: chances(batch, 24, 24) for number in (0, 2)}
        spread = Affinity(4, 6, torch.stack(list(own.values())).mean(0), own)
    return Attention("unet", 4, 6, 8, layers, tokens, DEFAULTS, spread, (0.35,), "a note")


class Gathered:
    """A sink that keeps what it gets: rows, or the whole maps."""

    def __init__(self, target: Grid, frames: int) -> None:
        self.target = target
        self.rows: list[slice] = []
        self._kept = KeptRows(frames)
        self.result: tuple[Tensor, Grid] | None = None

    def take(self, frame: int, rows: slice, part: Tensor) -> None:
        self.rows.append(rows)
        self._kept.take(frame, rows, part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        self.result = (self._kept.result(), self.target) if whole is None else whole


class Gathering:
    """The accumulator of self-attention and a sink for each target."""

    def __init__(self, grid: Grid, targets: Sequence[Grid], frames: int = 1) -> None:
        self.sinks = {target: Gathered(target, frames) for target in targets}
        self.maps = SelfMaps(grid, list(self.sinks.values()), frames)

    def of(self, target: Grid) -> tuple[Tensor, Grid]:
        """The maps for a target, of all frames, and their grid; to be asked after the pass."""
        sink = self.sinks[target]
        if sink.result is None:
            self.maps.finish()
        assert sink.result is not None
        return sink.result


def with_scores(record: Attention, *values: float) -> Attention:
    """One score for each layer, for all samples alike."""
    layers = zip(record.layers, values, strict=True)
    scored = [replace(layer, scores={DEFAULTS.layer: torch.full((record.batch,), value)}) for layer, value in layers]
    return replace(record, layers=tuple(scored))


def same(first: Attention, second: Attention, tolerance: float = 0.0) -> bool:
    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.dtype == b.dtype and torch.allclose(a, b, atol=tolerance, rtol=tolerance, equal_nan=True)

    layers = all(
        (a.name, a.height, a.width) == (b.name, b.height, b.width)
        and a.maps.keys() == b.maps.keys()
        and a.scores.keys() == b.scores.keys()
        and all(close(a.maps[key], b.maps[key]) for key in a.maps)
        and all(close(a.scores[key], b.scores[key]) for key in a.scores)
        for a, b in zip(first.layers, second.layers, strict=True)
    )
    spread = first.affinity is None and second.affinity is None
    if first.affinity is not None and second.affinity is not None:
        spread = close(first.affinity.matrix, second.affinity.matrix)
    rest = replace(first, layers=(), affinity=None) == replace(second, layers=(), affinity=None)
    return layers and spread and rest
