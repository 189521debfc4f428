"""HunyuanImage: Qwen's tokens, followed by the bytes of quoted text in the prompt (ByT5).

In HunyuanVideo 1.5 the tokens of ByT5 come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import WHOLE, Adapter, PromptTokens, Span, by_byte, measured_spans, moved
from .qwen import OWN, after_system, chat

# ComfyUI searches the prompt for these quotes in this order.
_QUOTES = (r"\"(.*?)\"", r"‘(.*?)’", r"“(.*?)”")
# The refiner's prompt begins with the first token of "<|start_header_id|>"; ComfyUI drops its first 36 tokens.
_ANGLE, _REFINER = 27, 36


def _prefix_length(ids: Sequence[Any]) -> int:
    return _REFINER if ids and ids[0] == _ANGLE and len(ids) > _REFINER else after_system(ids)


def letter_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """ByT5 has one token for each byte."""
    return measured_spans(sub, text, lambda _token: 1, lambda run: [by_byte(run)], WHOLE)


def _letters(clip: Any, text: str) -> tuple[list[Token], int]:
    """The tokens of ByT5 with their characters in the prompt, and their number."""
    model = getattr(clip, "cond_stage_model", None)
    chunks = clip.tokenize(text, return_word_ids=True).get("byt5")
    if chunks is None or (model is not None and getattr(model, "byt5_small", None) is None):
        return [], 0
    given, places = "", []  # the text that ComfyUI gives to ByT5, and for each character its place in the prompt
    for quoted in (match for pattern in _QUOTES for match in re.finditer(pattern, text)):
        # The plain prompt lacks the backslash before each escaped bracket.
        before = len(re.findall(r"\\[()]", text[: quoted.start(1)]))
        given += f'Text "{quoted[1]}". '
        inside = range(quoted.start(1) - before, quoted.end(1) - before)
        places += [-1] * len('Text "') + list(inside) + [-1] * len('". ')
    prompt = PromptTokens(clip.tokenizer.byt5, chunks, given, letter_spans)
    # If ComfyUI parsed weights inside the quotes, the places of the characters are unknown.
    known = prompt.plain == given
    places = places if known else [-1] * len(prompt.plain)
    return [_in_prompt(token, places) for token in prompt.tokens()], prompt.length


def _in_prompt(token: Token, places: list[int]) -> Token:
    if token.kind != "word":
        return token
    own = [place for place in places[token.start : token.end] if place >= 0]
    return replace(token, start=own[0], end=own[-1] + 1) if own else replace(token, kind="other", start=0, end=0)


def _words(clip: Any, text: str, video: bool) -> WordMap:
    # For the video model ComfyUI replaces an empty prompt by a space.
    found = chat(clip, text or " " if video else text, _prefix_length, OWN)
    letters, count = _letters(clip, text)
    tokens = letters + moved(found.tokens, count) if video else found.tokens + moved(letters, found.length)
    both = "byt5+qwen2.5" if video else "qwen2.5+byt5"
    return build(text, found.plain, both if count else "qwen2.5", found.length + count, tokens, found.breaks)


TOKENIZERS: dict[str, Adapter] = {
    "HunyuanImageTokenizer": partial(_words, video=False),
    "HunyuanVideo15Tokenizer": partial(_words, video=True),
}
