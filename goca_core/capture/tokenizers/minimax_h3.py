"""MiniMax-H3: Qwen's tokens of the prompt alone, after labels and signs for images, videos and sounds that it may refer to."""

from __future__ import annotations

from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import Adapter, lost
from .qwen import byte_spans


def _h3_words(clip: Any, text: str) -> WordMap:
    sub = clip.tokenizer.qwen3vl_32b
    (chunk,) = clip.tokenize(text)["qwen3vl_32b"]
    entries = [entry[0] for entry in chunk]
    ids, spans = byte_spans(sub, text) if text else ([], [])
    first = len(entries) - len(ids)
    if entries[first:] != ids:
        raise lost(text)
    # An empty prompt gets one token of padding.
    tokens = [Token(place, int(token), _piece(sub, token), "other") for place, token in enumerate(entries[:first])]
    tokens += [
        Token(place, int(token), _piece(sub, token), "word", *span)
        for place, (token, span) in enumerate(zip(ids, spans, strict=True), first)
    ]
    return build(text, text, "qwen3-vl", len(entries), tokens)


def _piece(sub: Any, token: int) -> str:
    return str(sub.tokenizer.decode([int(token)])).strip()


TOKENIZERS: dict[str, Adapter] = {"MiniMaxH3Tokenizer": _h3_words}
