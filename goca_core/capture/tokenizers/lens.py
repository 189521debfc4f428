"""Lens: GPT-OSS's tokens, whose vocabulary comes with its weights, in a template whose beginning is dropped."""

from __future__ import annotations

from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import Adapter, lost, within
from .qwen import byte_spans


def _lens_words(clip: Any, text: str) -> WordMap:
    from comfy.text_encoders.gpt_oss import LENS_MAX_TOKENS, LENS_TXT_OFFSET, _lens_render_chat

    sub = clip.tokenizer.gpt_oss
    ids = [entry[0] for entry in clip.tokenize(text)["gpt_oss"][0]]
    if not ids:  # ComfyUI makes no tokens from an empty prompt
        return build(text, text, "gpt-oss", 0, [])
    expected, spans = byte_spans(sub, _lens_render_chat(text))
    if ids != expected[:LENS_MAX_TOKENS]:
        raise lost(text)
    start = len(_lens_render_chat("\0").partition("\0")[0])
    tokens = []
    for place, (token, (a, b)) in enumerate(list(zip(ids, spans, strict=False))[LENS_TXT_OFFSET:]):
        found = Token(place, int(token), sub.tokenizer.decode([token]).strip(), "word", a, b)
        tokens.append(within(found, start, start + len(text)))
    return build(text, text, "gpt-oss", len(tokens), tokens)


TOKENIZERS: dict[str, Adapter] = {"LensTokenizer": _lens_words}
