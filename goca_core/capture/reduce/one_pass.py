"""Reduce an attention call in one pass over blocks of query rows, without forming its matrix.

A pass gives the probabilities of each block to accumulators: ``TextMaps`` keeps the text columns, ``SelfMaps`` keeps the
self-attention of the image.

In joint attention text and image are one sequence. With J its softmax, the text attention of a layer is J[image rows,
text columns] and its self-attention J[image rows, image columns]; neither is renormalised, so their rows sum to the
attention to text and to the image (GoCA, on MM-DiT models). Both need the softmax's denominators over all keys. Two
methods are exact:

- one pass, where each block gets its softmax over all keys. On a CPU this costs less than the attention call itself,
  because no values are multiplied, and it is the only way with a mask or without a fused kernel;
- if few rows of self-attention are needed, an accelerator's fused kernel gives the logarithm of the denominators of all
  rows at almost no cost; then only the kept columns and the needed rows are computed.

A third method, fused attention with one-hot values, also gives the text columns, but in the precision of the values (half
precision on an accelerator), and on a CPU it costs a whole attention call. ``benchmarks/joint.py`` compares the three.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..families.base import JointSpans
from .call import AttentionCall, probabilities
from .fused import FUSED, log_total
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
    total: Tensor | None = None,
) -> None:
    """Give each accumulator the probabilities of its keys.

    ``rows``: only these query rows. ``total``: logarithm of the denominators [B, H, Nq], needed if the call has only some
    of the keys.
    """
    numbers = torch.arange(call.q.shape[2]) if rows is None else rows
    index = None if rows is None else rows.to(call.q.device)
    for block, probs in probabilities(call, index, total):
        for accumulator, keys in accumulators:
            accumulator.add(numbers[block], probs[..., keys])


def self_pass(call: AttentionCall, image: slice, maps: SelfMaps, total: Tensor | None = None) -> None:
    """Reduce the self-attention of a call with the image's queries; ``image``: the image's keys among all keys."""
    if total is None:
        one_pass(call, (maps, image), rows=maps.rows)
        return
    # With known denominators each frame only needs its own keys.
    call = call.keys(image)
    for frame in range(maps.frames):
        one_pass(call.keys(maps.keys_of(frame)), (maps, ALL), rows=maps.rows_of(frame), total=total)


def video_total(call: AttentionCall, frames: int) -> Tensor | None:
    """The denominators of a self-attention call, if that saves work: for videos, where each frame keeps only its own keys."""
    return log_total(call) if frames > 1 and call.q.device.type in FUSED else None


def joint_pass(call: AttentionCall, spans: JointSpans, text: TextMaps, maps: SelfMaps | None = None) -> None:
    """Reduce a joint call with the image's queries to text maps and, with ``maps``, to self-attention."""
    partial = maps is None or maps.rows is not None or maps.frames > 1
    total = log_total(call) if partial and call.q.device.type in FUSED else None
    if total is None:
        one_pass(call, (text, spans.text), *([(maps, spans.image)] if maps is not None else []))
        return
    if maps is not None:
        self_pass(call, spans.image, maps, total)
    one_pass(call.keys(spans.text), (text, ALL), total=total)
