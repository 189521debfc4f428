"""From an attention call to what is kept of it, in one pass over blocks of query rows, without ever forming its matrix.

A pass hands the probabilities of each block to accumulators, which take in what they keep of it: ``TextMaps`` of the text
columns, ``SelfMaps`` of the image's attention to itself.

In joint attention text and image are one sequence. With J its softmax, the text attention of a layer is J[image rows,
text columns] and its self-attention J[image rows, image columns]; neither is renormalised, so their rows sum to the
attention that falls on text and on the image (GoCA, on MM-DiT models). Both need the softmax's denominators over all
keys. Two ways are exact:

- one pass, each block with its softmax over all keys. On a CPU this costs less than the attention call itself, because no
  values are multiplied, and it is the only way with a mask or without a fused kernel;
- where few rows of self-attention are wanted, an accelerator's fused kernel gives the logarithm of the denominators of
  all rows for next to nothing, and then only the kept columns and the wanted rows are computed.

A third, fused attention with one-hot values, gives the text columns too, but in the values' precision, which is half on
an accelerator, and on a CPU at the price of a whole attention call. ``benchmarks/joint.py`` compares the three.
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
    """Takes in the softmax of a call, block by block."""

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """The probabilities [B, H, rows, keys] of some query rows, whose numbers are ``numbers`` (ascending, on the CPU)."""


def one_pass(
    call: AttentionCall,
    *accumulators: tuple[Accumulator, slice],
    rows: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Give each accumulator the probabilities of its keys.

    ``rows``: only these query rows. ``total``: logarithm of the denominators [B, H, Nq], where the call has only some of
    the keys.
    """
    numbers = torch.arange(call.q.shape[2]) if rows is None else rows
    index = None if rows is None else rows.to(call.q.device)
    for block, probs in probabilities(call, index, total):
        for accumulator, keys in accumulators:
            accumulator.add(numbers[block], probs[..., keys])


def self_pass(call: AttentionCall, image: slice, maps: SelfMaps, total: Tensor | None = None) -> None:
    """Self-attention of a call whose queries are the image's and whose keys are ``image`` among others."""
    if total is None:
        one_pass(call, (maps, image), rows=maps.rows)
        return
    # With the denominators known each frame needs its own keys alone.
    call = call.keys(image)
    for frame in range(maps.frames):
        one_pass(call.keys(maps.keys_of(frame)), (maps, ALL), rows=maps.rows_of(frame), total=total)


def video_total(call: AttentionCall, frames: int) -> Tensor | None:
    """The denominators of a self-attention call, where knowing them saves work: of a video each frame's own part is kept."""
    return log_total(call) if frames > 1 and call.q.device.type in FUSED else None


def joint_pass(call: AttentionCall, spans: JointSpans, text: TextMaps, maps: SelfMaps | None = None) -> None:
    """Text maps, and self-attention where it is wanted, of a joint call whose queries are the image's."""
    partial = maps is None or maps.rows is not None or maps.frames > 1
    total = log_total(call) if partial and call.q.device.type in FUSED else None
    if total is None:
        one_pass(call, (text, spans.text), *([(maps, spans.image)] if maps is not None else []))
        return
    if maps is not None:
        self_pass(call, spans.image, maps, total)
    one_pass(call.keys(spans.text), (text, ALL), total=total)
