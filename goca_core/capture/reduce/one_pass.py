"""Reduce an attention call in one pass over blocks of query rows, without forming its matrix.

A pass gives the probabilities of each block to accumulators: ``TextMaps`` keeps the text columns, ``SelfMaps`` keeps the
self-attention of the image.

In joint attention text and image are one sequence. With J its softmax, the text attention of a layer is J[image rows,
text columns] and its self-attention J[image rows, image columns]; neither is renormalised, so their rows sum to the
attention to text and to the image (GoCA, on MM-DiT models). Both need the softmax's denominators over all keys:

- if the attention kernel has shown them (``fused``), only the kept columns and the needed rows are computed;
- otherwise each block gets its softmax over all keys. On a CPU this costs less than the attention call itself, because no
  values are multiplied, and it is the only way with a mask.

On an accelerator the text columns come from fused attention whose values are zeros and ones, in the precision of the model.
On a CPU that would cost a whole attention call. ``benchmarks/joint.py`` compares the three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ...tensors import index_on
from ..families.base import JointSpans
from .call import AttentionCall, probabilities
from .self_maps import SelfMaps
from .text_maps import TextMaps

ALL = slice(None)


class Accumulator(Protocol):
    """Accumulates the softmax of a call, block by block."""

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, keys] of the query rows ``numbers`` (ascending, on the CPU)."""


def one_pass(
    call: AttentionCall,
    *accumulators: tuple[Accumulator, slice],
    rows: Tensor | None = None,
    elements: int = 0,
    pick: Callable[[Tensor], Tensor] | None = None,
    numbers: Tensor | None = None,
) -> None:
    """Give each accumulator the probabilities of its keys.

    ``rows``: only these query rows; ``pick`` picks the same ones as a view. ``elements``: size of the largest block, 0 for
    that of the device. ``numbers``: those of the call's rows, if these were picked before.
    """
    if numbers is None:
        numbers = torch.arange(call.q.shape[2]) if rows is None else rows
    index = None if rows is None or pick is not None else index_on(call.q.device, rows)
    for block, probs in probabilities(call, index, elements, pick):
        for accumulator, keys in accumulators:
            accumulator.add(numbers[block], probs[..., keys])
        del probs  # before the next block is computed


def text_pass(call: AttentionCall, text: TextMaps, elements: int = 0) -> None:
    """Reduce a call whose keys are those of the text."""
    if not text.add_call(call):
        one_pass(call, (text, ALL), elements=elements)


def self_pass(call: AttentionCall, image: slice, maps: SelfMaps, elements: int = 0, picked: bool = False) -> None:
    """Reduce the self-attention of a call with the image's queries; ``image``: the image's keys among all keys.

    ``picked``: whether the call has only the queries that are needed (`self_maps.picked_rows`).
    """
    if call.total is None:
        rows = None if picked else maps.rows
        one_pass(call, (maps, image), rows=rows, elements=elements, numbers=maps.rows if picked else None)
        return
    # With known denominators each frame only needs its own keys, and all frames are computed at once.
    own = call.keys(image).by_frame(maps.frames)
    one_pass(own, (maps, ALL), rows=maps.rows_of_frame, elements=elements, pick=maps.pick)


def joint_pass(
    call: AttentionCall, spans: JointSpans, text: TextMaps, maps: SelfMaps | None = None, elements: int = 0
) -> None:
    """Reduce a joint call with the image's queries to text maps and, with ``maps``, to self-attention."""
    if call.total is None:
        accumulators: list[tuple[Accumulator, slice]] = [(text, spans.text)]
        if maps is not None:
            accumulators.append((maps, spans.image))
        one_pass(call, *accumulators, elements=elements)
        return
    if maps is not None:
        self_pass(call, spans.image, maps, elements)
    text_pass(call.keys(spans.text), text, elements)
