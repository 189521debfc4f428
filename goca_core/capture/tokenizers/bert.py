"""Hunyuan-DiT: the tokens of a Chinese BERT, followed by mT5's. Every word is in both."""

from __future__ import annotations

import unicodedata
from typing import Any

from ...words.build import build
from ...words.word_map import WordMap
from .base import Adapter, PromptTokens, Span, fast_spans, measured_spans
from .t5 import t5_spans


def bert_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The vocabulary is lower case without accents; ``##`` marks tokens that do not begin a word."""

    def owners(run: str) -> list[list[int]]:
        letters = [unicodedata.normalize("NFD", char.lower()) for char in run]
        return [[i for i, part in enumerate(letters) for sign in part if unicodedata.category(sign) != "Mn"]]

    return fast_spans(sub, text) or measured_spans(
        sub, text, lambda token: len(sub.inv_vocab[token].removeprefix("##")), owners
    )


def _hunyuan_words(clip: Any, text: str) -> WordMap:
    chunks = clip.tokenize(text, return_word_ids=True)
    bert = PromptTokens(clip.tokenizer.hydit_clip, chunks["hydit_clip"], text, bert_spans)
    mt5 = PromptTokens(clip.tokenizer.mt5xl, chunks["mt5xl"], text, t5_spans)
    tokens = bert.tokens() + mt5.tokens(bert.length)
    return build(text, bert.plain, "bert+mt5", bert.length + mt5.length, tokens, bert.breaks)


TOKENIZERS: dict[str, Adapter] = {"HyditTokenizer": _hunyuan_words}
