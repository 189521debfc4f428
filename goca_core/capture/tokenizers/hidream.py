"""HiDream-I1: T5's tokens, followed by those of Llama 3 twice. Every word has three positions."""

from __future__ import annotations

from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import Adapter, PromptTokens, moved
from .qwen import llama_spans
from .t5 import t5_spans


def _hidream_words(clip: Any, text: str) -> WordMap:
    """Either encoder may be missing; ComfyUI then uses vectors of zeros in its place."""
    tokenizer, model = clip.tokenizer, getattr(clip, "cond_stage_model", None)
    options = {"tokenizer_options": getattr(clip, "tokenizer_options", {})}
    # ComfyUI uses only the first chunk of T5's tokens, but all chunks are needed to match the prompt.
    chunks = tokenizer.t5xxl.tokenize_with_weights(text, True, **options)
    t5, length = PromptTokens(tokenizer.t5xxl, chunks, text, t5_spans), len(chunks[0])
    tokens = [token for token in t5.tokens() if token.position < length]
    if model is not None and model.t5xxl is None:
        tokens, length = _empty(128), 128
    chunks = clip.tokenize(text, return_word_ids=True)["llama"]
    llama = PromptTokens(tokenizer.llama, chunks, text, llama_spans).tokens()
    if model is not None and model.llama is None:
        llama = _empty(1)
    for _ in range(2):
        tokens += moved(llama, length)
        length += len(llama)
    return build(text, t5.plain, "t5+llama", length, tokens, t5.breaks)


def _empty(count: int) -> list[Token]:
    return [Token(place, -1, "", "pad") for place in range(count)]


TOKENIZERS: dict[str, Adapter] = {"HiDreamTokenizer": _hidream_words}
