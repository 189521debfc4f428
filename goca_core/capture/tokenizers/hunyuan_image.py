"""HunyuanImage: the tokens of Qwen and, behind them, the letters of what is quoted in the prompt (ByT5).

HunyuanVideo 1.5 has the letters first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import PromptTokens, Span, measured_spans
from .qwen import OWN, after_system, chat

# In this order the host goes through the prompt.
_QUOTES = (r"\"(.*?)\"", r"‘(.*?)’", r"“(.*?)”")
# The prompt of the refiner begins with the first token of "<|start_header_id|>" and loses so many.
_ANGLE, _REFINER = 27, 36


def _cut(ids: Sequence[Any]) -> int:
    return _REFINER if ids and ids[0] == _ANGLE and len(ids) > _REFINER else after_system(ids)


def letter_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """One token for each byte."""

    def owners(run: str) -> list[list[int]]:
        return [[place for place, char in enumerate(run) for _ in char.encode()]]

    return measured_spans(sub, text, lambda _token: 1, owners, r"(?s:.+)")


def _letters(clip: Any, text: str) -> tuple[list[Token], int]:
    """The tokens of ByT5 with their characters in the prompt, and their number."""
    model = getattr(clip, "cond_stage_model", None)
    chunks = clip.tokenize(text, return_word_ids=True).get("byt5")
    if chunks is None or (model is not None and getattr(model, "byt5_small", None) is None):
        return [], 0
    given, places = "", []  # what the host gives to ByT5, and the character of the prompt that each of its own is
    for quoted in (match for pattern in _QUOTES for match in re.finditer(pattern, text)):
        # Brackets lose the sign in front of them that says that they are no weights.
        before = len(re.findall(r"\\[()]", text[: quoted.start(1)]))
        given += f'Text "{quoted[1]}". '
        inside = range(quoted.start(1) - before, quoted.end(1) - before)
        places += [-1] * len('Text "') + list(inside) + [-1] * len('". ')
    reader = PromptTokens(clip.tokenizer.byt5, chunks, given, letter_spans)
    # Where the host found weights in the quotes, it is not known which letter is which.
    known = reader.plain == given
    return [
        _in_prompt(token, places if known else [-1] * len(reader.plain)) for token in reader.tokens()
    ], reader.length


def _in_prompt(token: Token, places: list[int]) -> Token:
    if token.kind != "word":
        return token
    own = [place for place in places[token.start : token.end] if place >= 0]
    return replace(token, start=own[0], end=own[-1] + 1) if own else replace(token, kind="other", start=0, end=0)


def _moved(tokens: list[Token], places: int) -> list[Token]:
    return [replace(token, position=token.position + places) for token in tokens]


def _image_words(clip: Any, text: str) -> WordMap:
    found = chat(clip, text, _cut, OWN)
    letters, count = _letters(clip, text)
    tokens = found.tokens + _moved(letters, found.length)
    encoder = "qwen2.5+byt5" if count else "qwen2.5"
    return build(text, found.plain, encoder, found.length + count, tokens, found.breaks)


def _video_words(clip: Any, text: str) -> WordMap:
    found = chat(clip, text or " ", _cut, OWN)  # the host never gives an empty one
    letters, count = _letters(clip, text)
    tokens = letters + _moved(found.tokens, count)
    encoder = "byt5+qwen2.5" if count else "qwen2.5"
    return build(text, found.plain, encoder, count + found.length, tokens, found.breaks)


TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    "HunyuanImageTokenizer": _image_words,
    "HunyuanVideo15Tokenizer": _video_words,
}
