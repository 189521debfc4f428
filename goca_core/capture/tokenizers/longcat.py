"""LongCat-Image: Qwen's tokens of the prompt, one character at a time in quotes, padded to 512; without the template."""

from __future__ import annotations

from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import Adapter, lost
from .qwen import OWN, after_system, byte_spans

_IM_END = 151645  # <|im_end|>; tokens from the last one on are dropped
_IMAGE = 151655


def _longcat_words(clip: Any, text: str) -> WordMap:
    from comfy.text_encoders.longcat_image import split_quotation

    sub = clip.tokenizer.qwen25_7b
    ids = [entry[0] for entry in clip.tokenize(text)["qwen25_7b"][0]]
    template = clip.tokenizer.EDIT_PREFIX if _IMAGE in ids else clip.tokenizer.T2I_PREFIX
    before = "" if text.startswith(OWN) else template
    start = len(sub.tokenizer(before, add_special_tokens=False)["input_ids"]) if before else 0
    expected, spans, at = [], [], 0
    for part, quoted in split_quotation(text or " "):
        for piece in part if quoted else [part]:
            found, places = byte_spans(sub, piece)
            expected += found
            spans += [(at + a, at + b) for a, b in places]
            at += len(piece)
    # ComfyUI truncates a prompt to this many tokens and pads shorter ones.
    count = min(len(expected), sub.max_length)
    if at != len(text or " ") or ids[start : start + count] != expected[:count]:
        raise lost(text)
    first = max(0, after_system(ids)) if 151644 in ids else 0
    stop = max((place for place, token in enumerate(ids) if token == _IM_END), default=len(ids))
    stop = len(ids) if stop <= first else stop
    tokens = []
    for place in range(first, stop):
        number = place - start
        kind = "word" if 0 <= number < count else "pad" if ids[place] == sub.pad_token else "other"
        a, b = spans[number] if kind == "word" else (0, 0)
        tokens.append(Token(place - first, int(ids[place]), sub.tokenizer.decode([ids[place]]).strip(), kind, a, b))
    return build(text, text, "qwen2.5", stop - first, tokens)


TOKENIZERS: dict[str, Adapter] = {"LongCatImageTokenizer": _longcat_words}
