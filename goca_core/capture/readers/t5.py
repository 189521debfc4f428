"""T5's SentencePiece tokens: no start, ``</s>`` at the end, padded up to a length or not at all.

A piece that begins a word carries ``▁``; where the vocabulary has no such piece, ``▁`` is a token of its own, which
names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ...wordbuild import build
from ...words import WordMap
from .prompt import Reader, Span, fast_spans

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def t5_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """From a fast tokenizer, or from SentencePiece itself (mT5 and others, whose vocabulary comes with the weights)."""
    ids, spans = fast_spans(sub, text) or _sentencepiece(sub.tokenizer.tokenizer, text)
    pieces = [str(sub.inv_vocab[token]) for token in ids]
    return ids, [(a, a) if not piece.strip("▁") else (a, b) for piece, (a, b) in zip(pieces, spans, strict=True)]


def _sentencepiece(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    plain = {"add_bos": False, "add_eos": False}
    ids = list(processor.encode(text, **plain))
    try:
        spans = [(a, b) for a, b in processor.encode(text, return_type="offset_mapping", **plain)["offsets"]]
    except TypeError:  # before version 0.2.2
        spans = [(p.begin, p.end) for p in processor.encode(text, out_type="immutable_proto", **plain).pieces]
    # Of a character that is spelt in bytes only the last byte has it; all of them stand for it.
    for number in reversed(range(len(ids) - 1)):
        start, end = spans[number]
        if start == end and _BYTE.fullmatch(processor.id_to_piece(ids[number])):
            spans[number] = (start, spans[number + 1][1])
    return ids, spans


def t5_words(clip: Any, text: str, attribute: str, key: str = "t5xxl", encoder: str = "t5") -> WordMap:
    """Models that see the tokens of T5 alone; a second encoder may give a pooled vector, which has no places."""
    chunks = clip.tokenize(text, return_word_ids=True)[key]
    reader = Reader(getattr(clip.tokenizer, attribute), chunks, text, t5_spans)
    return build(text, reader.plain, encoder, reader.length, reader.tokens(), reader.breaks)


READERS: dict[str, Callable[[Any, str], WordMap]] = {
    "PixArtTokenizer": partial(t5_words, attribute="clip_t5xxl"),
    "FluxTokenizer": partial(t5_words, attribute="t5xxl"),
}
