"""Which text was tokenised into which tokens. Nodes may take tokens of several texts together before they encode them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# How many lists of tokens are remembered. A node encodes its tokens right after it has made them.
LIMIT = 512
# Beyond so many chunks, tokens are looked up as a whole only.
_CHUNKS = 64


class Source(NamedTuple):
    """A text, and the options of the tokenizer (such as a template) that it was tokenised with."""

    text: str
    options: Mapping[str, Any]


class Part(NamedTuple):
    """Consecutive chunks of tokens that were made from one text."""

    source: Source
    chunks: int


def ids_of(chunk: Sequence[Any]) -> tuple[int | None, ...]:
    """The token ids of a chunk; None for the vectors of embeddings, and for images."""
    return tuple(entry[0] if isinstance(entry[0], int) else None for entry in chunk)


class Texts:
    """The texts of the last lists of tokens. Tokens are known by their ids and weights, or by their ids alone.

    >>> texts = Texts()
    >>> chunk = [(49406, 1.0), (2368, 1.0), (49407, 1.0)]
    >>> texts.remember("CLIP", {"l": [chunk]}, Source("cat", {}))
    >>> [(part.source.text, part.chunks) for part in texts.parts("CLIP", "l", [chunk, chunk])]
    [('cat', 1), ('cat', 1)]
    >>> texts.parts("T5", "l", [chunk]) is None
    True
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._sources: OrderedDict[tuple[Any, ...], Source] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, tokenizer: Any, tokens: Mapping[str, Any], source: Source) -> None:
        """Note that a text became these tokens: for each text encoder, chunks of (id or vector, weight)."""
        marks = {key: _marks(chunks) for key, chunks in tokens.items() if isinstance(chunks, list)}
        with self._lock:
            for key, own in marks.items():
                for exact in (False, True):
                    name = tokenizer, key, tuple(mark if exact else mark[0] for mark in own)
                    self._sources.pop(name, None)
                    self._sources[name] = source
            while len(self._sources) > self._limit:
                self._sources.popitem(last=False)

    def parts(self, tokenizer: Any, key: str, chunks: Sequence[Any]) -> tuple[Part, ...] | None:
        """The texts that these chunks come from, in order; None if one of them is unknown."""
        marks = _marks(chunks)
        found: list[Part] = []
        start = 0
        with self._lock:
            while start < len(marks):
                ends = range(len(marks), start, -1) if len(marks) <= _CHUNKS else [len(marks)]
                for end in ends:
                    source = self._source(tokenizer, key, marks[start:end])
                    if source is not None:
                        found.append(Part(source, end - start))
                        start = end
                        break
                else:
                    return None
        return tuple(found)

    def _source(self, tokenizer: Any, key: str, marks: Sequence[tuple[int, int]]) -> Source | None:
        exact = self._sources.get((tokenizer, key, tuple(marks)))
        # Other nodes change weights; the words stay the same.
        return exact or self._sources.get((tokenizer, key, tuple(mark[0] for mark in marks)))


def _marks(chunks: Sequence[Any]) -> list[tuple[int, int]]:
    """For each chunk, a hash of its tokens and one of their weights. A vector is known by its identity."""
    return [
        (
            hash(tuple([entry[0] if isinstance(entry[0], int) else ("vector", id(entry[0])) for entry in chunk])),
            hash(tuple([entry[1] for entry in chunk])),
        )
        for chunk in chunks
    ]
