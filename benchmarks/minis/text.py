"""The text encoder of a miniature: real token ids, embedded by two small transformer layers for each tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Stream:
    """One tokenizer, and what the family makes of its tokens.

    ``length``: tokens after padding. ``head``: with the part of the chat template before the prompt. ``zero``: padding
    is encoded as zeros.
    """

    vocabulary: str
    length: int
    causal: bool = False
    head: bool = True
    zero: bool = False

    @property
    def table(self) -> dict[str, Any]:
        return _vocabularies()[self.vocabulary]

    def token_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of a caption, a comma being a word of its own, without padding. No words give the special tokens alone."""
        table = self.table
        ids = list(table["before"]) if self.head else []
        for place, word in enumerate(words):
            ids += table["comma"] if word == "," else table["rest" if place else "first"][word]
        return ids + list(table["after"])

    def rows(self, ids: Sequence[int]) -> list[int]:
        """The rows of the embedding for token ids, padded to the length of the stream."""
        row = {token: number for number, token in enumerate(self.table["ids"])}
        return [row[i] for i in ids] + [row[self.table["pad"]]] * (self.length - len(ids))


@lru_cache(maxsize=1)
def _vocabularies() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("vocabulary.json").read_text())
    return found


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        moved: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return moved


class _Part(nn.Module):
    def __init__(self, stream: Stream, width: int) -> None:
        super().__init__()
        self.stream = stream
        self.embedding = nn.Embedding(len(stream.table["ids"]), width)
        self.position = nn.Parameter(torch.zeros(stream.length, width))
        self.layers = nn.ModuleList(_Layer(width, heads=4) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """rows [1, L] of which ``length`` are no padding -> [1, L, width], and [1, width] of the last of those."""
        x = self.embedding(rows) + self.position
        places = torch.arange(rows.shape[1])
        hidden = places[None, :] > places[:, None] if self.stream.causal else (places >= length)[None, :]
        mask = torch.zeros(len(places), len(places)).masked_fill_(hidden, -1e4)[None, None]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        last = x[:, length - 1]
        return x * (places < length)[None, :, None].to(x) if self.stream.zero else x, last


class TextEncoder(nn.Module):
    """``pooled``: width of the pooled vector, or None without one."""

    def __init__(self, streams: Sequence[Stream], width: int, pooled: int | None) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.parts = nn.ModuleList(_Part(stream, width) for stream in streams)
        self.pool = nn.Linear(width, pooled) if pooled else None

    @torch.inference_mode()
    def encode(self, words: Sequence[str]) -> tuple[Tensor, Tensor | None, int]:
        """The context [1, L, width], the pooled vector [1, C], and the number of tokens of the first stream."""
        ids = [stream.token_ids(words) for stream in self.streams]
        rows = [torch.tensor([stream.rows(own)]) for stream, own in zip(self.streams, ids, strict=True)]
        found = [part(r, len(own)) for part, r, own in zip(self.parts, rows, ids, strict=True)]
        pooled = None if self.pool is None else self.pool(found[0][1])
        return torch.cat([x for x, _ in found], 1), pooled, len(ids[0])
