"""The scores of every method from the recordings of one image. A step that methods share is computed once."""

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
from ..tensors import Grid, resize_bilinear
from ..words.word_map import resolve
from .methods import BY_SCORE, Method, View, views_of
from .prompts.captions import Prompt

T = TypeVar("T")
# Fields that propagated scores depend on, in addition to those of the rescaled scores.
_PROPAGATION = ("order", "affinity")


@dataclass(frozen=True)
class ObjectColumns:
    """Columns of a recording's maps: those of each class, of each background phrase, and of all content words.

    ids: class ids, in the order of `objects`. supports: of the phrases without a class.
    """

    ids: tuple[int, ...]
    objects: tuple[tuple[int, ...], ...]
    supports: tuple[tuple[int, ...], ...]
    content: tuple[int, ...]


def find_columns(prompt: Prompt, tokens: Tokens) -> ObjectColumns:
    """Find the phrases of a prompt in a recording. Raises PhraseError or AttentionError for one that is not there."""
    words = tokens.word_map()

    def found(phrases: str) -> tuple[int, ...]:
        return tuple(tokens.columns(resolve(phrases, words)[0].tokens))

    objects = {number: found(", ".join(phrases)) for number, phrases in prompt.objects.items()}
    supports = tuple(found(phrase) for phrase in prompt.supports)
    used = {column for group in (*objects.values(), *supports) for column in group}
    lost = {column for phrase in prompt.lost for column in found(phrase)} - used
    content = tuple(column for column in tokens.columns(words.content()) if column not in lost)
    return ObjectColumns(tuple(objects), tuple(objects.values()), supports, content)


def manual_layers(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Indices of the layers that people usually pick by hand.

    Skips the layers of the finest grid. From the next grid, takes those from the middle of the network on, except in the
    last block; from coarser grids, takes all. For SD 1.x these are the eight layers of the reference's baseline. Where all
    layers have the same grid, takes the middle third of them, as the reference does for PixArt-Sigma.
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
    """The global map [B, T, h, w], at the size of the finest layer.

    layers: "all", or "manual" for `manual_layers`. Raises AttentionError for a method that was not recorded.
    """
    if layers == "all":
        return aggregate(attention, head, layer).maps
    attention.check_finite()
    kept = manual_layers(attention.layers)
    chosen = replace(attention, layers=tuple(attention.layers[i] for i in kept))
    weights = layer_weights(chosen, layer, head)
    if head not in chosen.head_methods:
        raise AttentionError(f'The head method "{head}" was not recorded: use one of {", ".join(chosen.head_methods)}.')
    grids = [(one.height, one.width) for one in attention.layers]
    size = max(grids, key=lambda grid: grid[0] * grid[1])
    return aggregate_layers([one.maps[head] for one in chosen.layers], [grids[i] for i in kept], weights, size)


class Scorer:
    """Computes the scores of one image.

    records: one recording, with a batch of one, for each view. image: uint8 [H, W, 3], for refinements; it has the size of
    the label, which is also the size of the scores.
    """

    def __init__(self, records: Mapping[View, Attention], prompt: Prompt, image: NDArray[np.uint8]) -> None:
        self._records, self._image = records, image
        self._size: Grid = (int(image.shape[0]), int(image.shape[1]))
        self._defaults = next(iter(records.values())).defaults
        self.columns = find_columns(prompt, next(iter(records.values())).tokens)
        self._kept: dict[Hashable, object] = {}
        self._sized: tuple[Hashable, Tensor] | None = None

    def scores(self, method: Method) -> tuple[Tensor, Tensor | None]:
        """Scores [K, H, W] of the classes in `columns.ids`, and of the background [H, W], or None without background phrases.

        method: a resolved method. Methods that differ only in their background rule share the largest tensors, so ask for
        them one after the other (`group_by_scores` puts them in this order).
        Raises AttentionError for something that the recordings do not hold.
        """
        method = method.with_defaults(self._defaults)
        key = _key(method, *_PROPAGATION, "refine")
        if self._sized is None or self._sized[0] != key:
            # Only the last is kept, because labels are much larger than maps.
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
        parts = method.head, method.layer, method.layers
        return self._once(("maps", views_of(method), *parts), lambda: global_map(self._record(method), *parts))

    def _rescaled(self, method: Method) -> Tensor:
        """Rescaled scores [1, K + 1, h, w] of the classes, then of the background: all zero without background phrases."""

        def make() -> Tensor:
            columns, count = self.columns, len(self.columns.ids)
            groups = [*columns.objects, *columns.supports]
            maps = rescale(self._maps(method), groups, columns.content, method.rescale, range_=method.range)
            return torch.cat((maps[:, :count], merge_background(maps[:, count:])[:, None]), 1)

        return self._once(("rescaled", *_key(method)), make)

    def _propagated(self, method: Method) -> Tensor:
        """The rescaled scores after propagation, on the affinity's grid."""

        def make() -> Tensor:
            maps, affinity = self._rescaled(method), self._affinity(method)
            if not method.order or affinity is None:
                return maps
            fitted = resize_bilinear(maps, (affinity.height, affinity.width))
            return propagate(fitted, affinity.matrix, method.order, method.range)

        return self._once(("propagated", *_key(method, *_PROPAGATION)), make)

    def _affinity(self, method: Method) -> Affinity | None:
        """The self-attention that scores are propagated along."""
        record = self._record(method)
        if method.affinity != BY_SCORE or not method.order:
            return record.affinity
        return self._once(("affinity", views_of(method)), lambda: weighted_affinity(record))

    def _refined(self, method: Method) -> Tensor:
        """The propagated scores after the refinement. Not kept, since they may be as large as the image."""
        maps = self._propagated(method)
        if method.refine == "none":
            return maps
        refinement, affinity = REFINEMENTS[method.refine](), self._affinity(method)
        if refinement.guide == "affinity":
            if affinity is None:
                raise AttentionError(f"The recording holds no self-attention, which {method.refine} needs.")
            return apply(refinement, maps, affinity=affinity)
        image = torch.from_numpy(self._image.copy())[None].to(maps.device, torch.float32) / 255
        # As in the nodes: resize first, but tell the refinement how coarse the scores were.
        return apply(refinement, resize_bilinear(maps, self._size), image, cell=cell_of(maps, image))


def group_by_scores(methods: Iterable[Method]) -> list[Method]:
    """Sort methods so that those with the same scores are next to each other."""
    return sorted(methods, key=lambda method: repr(_key(method, *_PROPAGATION, "refine")))


def _key(method: Method, *more: str) -> tuple[Hashable, ...]:
    """Everything that the rescaled scores depend on, and the fields `more`."""
    names = ("head", "layer", "layers", "rescale", "range", *more)
    return (views_of(method), *(getattr(method, name) for name in names))
