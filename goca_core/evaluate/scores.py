"""From the recordings of one picture to the scores of every method, each step made once however many methods share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attention.global_map import aggregate, layer_weights, weighted_affinity
from ..attention.merge import merge
from ..attention.record import Affinity, Attention, AttentionError, Layer, Tokens
from ..layers import aggregate_layers
from ..refine.methods import REFINEMENTS, apply, cell_of
from ..refine.propagation import propagate
from ..rescale import merge_background, rescale
from ..tensors import Grid, Range, resize_bilinear
from ..words.word_map import resolve
from .methods import BY_SCORE, Method, View, views_of
from .prompts.captions import Prompt

T = TypeVar("T")
# What propagated scores depend on beside the rescaled ones.
_SPREAD = ("order", "affinity")


@dataclass(frozen=True)
class Columns:
    """The columns of a recording's maps: of each class, of each phrase without a class, and of all content words."""

    ids: tuple[int, ...]
    objects: tuple[tuple[int, ...], ...]
    supports: tuple[tuple[int, ...], ...]
    content: tuple[int, ...]


def columns_of(prompt: Prompt, tokens: Tokens) -> Columns:
    """Where the phrases of a prompt are in a recording. Raises a ValueError of one sentence for one that is not there."""
    words = tokens.word_map()

    def found(phrases: str) -> tuple[int, ...]:
        return tuple(tokens.columns(resolve(phrases, words)[0].tokens))

    objects = {number: found(", ".join(phrases)) for number, phrases in prompt.objects.items()}
    supports = tuple(found(phrase) for phrase in prompt.supports)
    used = {column for group in (*objects.values(), *supports) for column in group}
    lost = {column for phrase in prompt.lost for column in found(phrase)} - used
    content = tuple(column for column in tokens.columns(words.content()) if column not in lost)
    return Columns(tuple(objects), tuple(objects.values()), supports, content)


def manual_layers(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Hand-picked layers, as numbers: what people choose when they choose by looking.

    The finest layers are left out; of the next finer grid those from the middle of the network on are taken, but not its
    last block; of coarser grids all. For SD 1.x these are the eight of the reference's baseline. Where all layers have the
    same grid it is the middle third of them, as the reference has it for PixArt-Sigma.
    """
    tokens = [layer.height * layer.width for layer in layers]
    sizes = sorted(set(tokens), reverse=True)
    if len(sizes) == 1:
        count = len(layers)
        return tuple(range(-(-count // 3), 2 * count // 3)) or tuple(range(count))
    late = [i for i, count in enumerate(tokens) if count == sizes[1] and not layers[i].name.startswith("input.")]
    last = layers[late[-1]].name.rpartition(".")[0] if late else ""
    kept = [i for i in late if layers[i].name.rpartition(".")[0] != last]
    chosen = sorted(kept + [i for i, count in enumerate(tokens) if count < sizes[1]])
    return tuple(chosen or late or [i for i, count in enumerate(tokens) if count == sizes[1]])


def global_map(attention: Attention, head: str, layer: str, layers: str) -> Tensor:
    """The global map [B, T, h, w], at the size of the finest layer, for a choice of layers and of their weights."""
    if layers == "all":
        return aggregate(attention, head, layer).maps
    attention.check_finite()
    kept = manual_layers(attention.layers)
    chosen = replace(attention, layers=tuple(attention.layers[i] for i in kept))
    weights = layer_weights(chosen, layer)
    if head not in chosen.head_methods:
        raise AttentionError(f'The head method "{head}" was not recorded.')
    grids = [(one.height, one.width) for one in attention.layers]
    size = max(grids, key=lambda grid: grid[0] * grid[1])
    return aggregate_layers([one.maps[head] for one in chosen.layers], [grids[i] for i in kept], weights, size)


class Scorer:
    """The scores of one picture.

    records: one recording, of a batch of one, for each look. picture: uint8 [H, W, 3], for refinements; of the label's size,
    which is that of the scores.
    """

    def __init__(self, records: Mapping[View, Attention], prompt: Prompt, picture: NDArray[np.uint8]) -> None:
        self._records, self._picture = records, picture
        self._size: Grid = (int(picture.shape[0]), int(picture.shape[1]))
        self._defaults = next(iter(records.values())).defaults
        self.columns = columns_of(prompt, next(iter(records.values())).tokens)
        self._kept: dict[Hashable, object] = {}
        self._sized: tuple[Hashable, Tensor] | None = None

    def scores(self, method: Method) -> tuple[Tensor, Tensor | None]:
        """Scores [K, H, W] of the classes of `columns.ids`, and of the background [H, W], or None without its words.

        method: settled. At the size of the label. Methods that differ in their background rule alone should be asked for
        one after the other (`alike` sorts them so): they share what is largest.
        """
        method = method.filled(self._defaults)
        key = _key(method, *_SPREAD, "refine")
        if self._sized is None or self._sized[0] != key:
            # Only the last is kept: labels are large where maps are small.
            self._sized = key, resize_bilinear(self._refined(method), self._size)
        maps, count = self._sized[1], len(self.columns.ids)
        return maps[0, :count], maps[0, count] if self.columns.supports else None

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def _record(self, method: Method) -> Attention:
        views = views_of(method)
        return self._once(("record", views), lambda: merge([self._records[view] for view in views]))

    def _maps(self, method: Method) -> Tensor:
        """The global map, [1, T, h, w]."""

        def make() -> Tensor:
            return global_map(self._record(method), method.head, method.layer, method.layers)

        return self._once(("maps", views_of(method), method.head, method.layer, method.layers), make)

    def _rescaled(self, method: Method) -> Tensor:
        """[1, K + 1, h, w]: the classes, then the background, which is zero everywhere when it has no words."""

        def make() -> Tensor:
            columns, count = self.columns, len(self.columns.ids)
            groups = [*columns.objects, *columns.supports]
            maps = rescale(self._maps(method), groups, columns.content, method.rescale, range_=_range(method))
            return torch.cat((maps[:, :count], merge_background(maps[:, count:])[:, None]), 1)

        return self._once(("rescaled", *_key(method)), make)

    def _spread(self, method: Method) -> Tensor:
        """The same after propagation, on the affinity's grid."""

        def make() -> Tensor:
            maps, affinity = self._rescaled(method), self._affinity(method)
            if not method.order or affinity is None:
                return maps
            fitted = resize_bilinear(maps, (affinity.height, affinity.width))
            return propagate(fitted, affinity.matrix, method.order, _range(method))

        return self._once(("spread", *_key(method, *_SPREAD)), make)

    def _affinity(self, method: Method) -> Affinity | None:
        """The self-attention that scores spread along."""
        record = self._record(method)
        if method.affinity != BY_SCORE or not method.order:
            return record.affinity
        return self._once(("affinity", views_of(method)), lambda: weighted_affinity(record))

    def _refined(self, method: Method) -> Tensor:
        """The same after a refinement; not kept, for it may be as large as the picture."""
        maps = self._spread(method)
        if method.refine == "none":
            return maps
        refinement, affinity = REFINEMENTS[method.refine](), self._affinity(method)
        if refinement.guide == "affinity":
            if affinity is None:
                raise AttentionError(f"The recording holds no self-attention, which {method.refine} needs.")
            return apply(refinement, maps, affinity=affinity)
        picture = torch.from_numpy(self._picture.copy())[None].to(maps.device, torch.float32) / 255
        # As the nodes do it: enlarged first, but told how coarse the scores were.
        return apply(refinement, resize_bilinear(maps, self._size), picture, cell=cell_of(maps, picture))


def alike(methods: Iterable[Method]) -> list[Method]:
    """The methods, those whose scores are the same next to each other."""
    return sorted(methods, key=lambda method: repr(_key(method, *_SPREAD, "refine")))


def _key(method: Method, *more: str) -> tuple[Hashable, ...]:
    """What the rescaled scores depend on, and `more` fields."""
    names = ("head", "layer", "layers", "rescale", "range", *more)
    return (views_of(method), *(getattr(method, name) for name in names))


def _range(method: Method) -> Range:
    return "robust" if method.range == "robust" else "full"
