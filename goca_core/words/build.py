"""Build the word map of a prompt from the tokens of a text encoder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .text import EMBEDDING, STOP_WORDS, fold, fold_words, split_words
from .word import Piece, Word
from .word_map import WordMap


@dataclass(frozen=True)
class Token:
    """One token of a text encoder. Its characters are plain[start:end]; special tokens have none."""

    position: int
    token_id: int
    text: str
    kind: str
    start: int = 0
    end: int = 0


def build(
    text: str, plain: str, encoder: str, length: int, tokens: Sequence[Token], breaks: Iterable[int] = ()
) -> WordMap:
    """Build the word map of a prompt.

    text: the prompt as typed. plain: the text that the tokens cover. encoder: name of the text encoder. length: number of
    tokens of the conditioning. breaks: indices in `plain` where a word ends although no space follows.
    """
    embeddings = {(t.start, t.end) for t in tokens if t.kind == "embedding"}
    cuts = sorted({0, len(plain), *breaks, *(edge for span in embeddings for edge in span)})
    spans: list[tuple[int, int]] = []
    for a, b in pairwise(cuts):
        spans += [(a, b)] if (a, b) in embeddings else [(a + s, a + e) for s, e in split_words(plain[a:b])]

    owned: dict[tuple[int, int], list[int]] = {}
    first: dict[int, tuple[int, int]] = {}
    for t in tokens:
        # A token may cover several words (an emoji and the punctuation after it), and a word may have several tokens.
        for span in spans[bisect_right(spans, t.start, key=lambda s: s[1]) :]:
            if span[0] >= t.end:
                break
            owned.setdefault(span, []).append(t.position)
            first.setdefault(t.position, span)
    words: list[Word] = []
    seen: dict[str, int] = {}
    for span in (s for s in spans if s in owned):  # text that the encoder dropped (an unknown embedding) is not a word
        spelling = plain[span[0] : span[1]]
        key = fold(spelling)
        seen[key] = seen.get(key, 0) + 1
        content = spelling.startswith(EMBEDDING) or (bool(fold_words(spelling)) and key not in STOP_WORDS)
        words.append(Word(spelling, *span, tuple(sorted(owned[span])), seen[key], content))
    index = {(w.start, w.end): i for i, w in enumerate(words)}

    pieces = []
    for t in sorted(tokens, key=lambda t: t.position):
        word = index[first[t.position]] if t.position in first else None
        kind = "other" if t.kind == "word" and word is None else t.kind
        pieces.append(Piece(t.position, t.text, kind, word, t.token_id))
    special = tuple(p.position for p in pieces if p.kind in ("start", "end"))
    pad = tuple(p.position for p in pieces if p.kind == "pad")
    return WordMap(text, plain, encoder, length, tuple(words), tuple(pieces), special, pad)
