"""Language models of the Qwen family: byte-level tokens of the prompt inside a chat template.

The template's own words are no words of the prompt, although "image", "shape" or "user" may be in both: only tokens of
the characters that the prompt was put at count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import PromptTokens, Span, fast_spans, is_vector, measured_spans, plain_of

_START, _USER, _NEWLINE = 151644, 872, 198  # <|im_start|>, "user" and the line break behind it
_BACKGROUND, _COLON = 4004, 25
_OPENING = "<|im_start|>"
OWN = (_OPENING, "<|start_header_id|>")
"""Beginnings of a text that brings its own template to Qwen-Image and its relatives."""

# The ids of a chat -> how many of them are not in the conditioning.
MaskResult = Callable[[Sequence[Any]], int]


def byte_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The vocabulary has one sign for each byte, spaces included."""

    def owners(run: str) -> list[list[int]]:
        return [[i for i, char in enumerate(run) for _ in char.encode()]]

    def length(token: int) -> int:
        return len(sub.inv_vocab[token])

    return fast_spans(sub, text) or measured_spans(sub, text, length, owners, r"(?s:.+)")


def uncut(_ids: Sequence[Any]) -> int:
    return 0


def after_system(ids: Sequence[Any]) -> int:
    """Qwen-Image drops what comes before the user's part, and its head too."""
    starts = [place for place, token in enumerate(ids) if token == _START][:2]
    cut = starts[-1] if starts else -1
    if len(ids) - cut > 3 and list(ids[cut + 1 : cut + 3]) == [_USER, _NEWLINE]:
        cut += 3
    # What the host does with a text without any start: it keeps the last token.
    return cut if cut >= 0 else len(ids) - 1


def _first(count: int) -> MaskResult:
    """A template whose head the host drops by its length."""
    return lambda ids: min(count, len(ids))


def _after_background(ids: Sequence[Any]) -> int:
    """Ovis-Image keeps what follows "... of the objects and background"."""
    cut = next((place for place, token in enumerate(ids) if token == _BACKGROUND), len(ids) - 1)
    return cut + (len(ids) > cut + 1 and ids[cut + 1] == _COLON)


def own_template(tokenizer: Any, _text: str) -> str:
    template: str = tokenizer.llama_template
    return template


def bare(_tokenizer: Any, _text: str) -> str:
    return "{}"


def _boogu_template(tokenizer: Any, text: str) -> str:
    template: str = tokenizer.llama_template if text.strip() else tokenizer.llama_template_drop
    return template


class Chat(NamedTuple):
    """A prompt inside a template, as the host reads it; its tokens are those that are left in the conditioning."""

    plain: str
    tokens: list[Token]
    length: int
    breaks: list[int]


def chat(
    clip: Any,
    text: str,
    cut: MaskResult = uncut,
    own: tuple[str, ...] = (),
    template: Callable[[Any, str], str] = own_template,
    weights: bool = False,
) -> Chat:
    """``own``: beginnings of a text that brings its own template. ``weights``: whether the host reads weights syntax."""
    name = clip.tokenizer.clip_name
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    ids = [None if is_vector(entry[0]) else entry[0] for entry in chunks[0]]
    # Older hosts put some of these texts into the template all the same.
    as_it_is = bool(own) and text.startswith(own) and ids.count(_START) <= text.count(_OPENING)
    around = "{}" if as_it_is else template(clip.tokenizer, text)
    before = around.partition("{}")[0]
    reader = PromptTokens(getattr(clip.tokenizer, name), chunks, around.format(text), byte_spans, weights)
    plain, _ = plain_of(text, weights)
    first, start, end = cut(ids), len(before), len(before) + len(plain)
    tokens = []
    for token in reader.tokens():
        moved = within(token, start, end)
        if token.position >= first:
            tokens.append(replace(moved, position=token.position - first))
    return Chat(plain, tokens, reader.length - first, [edge - start for edge in reader.breaks if start < edge < end])


def within(token: Token, start: int, end: int) -> Token:
    """A token of a template with the characters that it has of the prompt, which is at ``start`` to ``end`` in it."""
    # It may straddle the border to the template (line breaks do).
    a, b = max(token.start, start) - start, min(token.end, end) - start
    if token.kind in ("word", "embedding") and a >= b:
        return replace(token, kind="other", start=0, end=0)
    return replace(token, start=a, end=b)


def chat_words(clip: Any, text: str, encoder: str, **options: Any) -> WordMap:
    """The word map of a text encoder that gives the tokens of a chat (see ``chat``)."""
    found = chat(clip, text, **options)
    return build(text, found.plain, encoder, found.length, found.tokens, found.breaks)


after_system_words = partial(chat_words, encoder="qwen2.5", cut=after_system, own=OWN)
"""Qwen-Image and others whose text encoder works like its."""
_QWEN3_VL = partial(chat_words, encoder="qwen3-vl", own=(_OPENING,))

TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    "ZImageTokenizer": partial(chat_words, encoder="qwen3"),
    "KleinTokenizer": partial(chat_words, encoder="qwen3"),
    "KleinTokenizer8B": partial(chat_words, encoder="qwen3"),
    **dict.fromkeys(("QwenImageTokenizer", "Kandinsky5Tokenizer", "Kandinsky5TokenizerImage"), after_system_words),
    "Omnigen2Tokenizer": partial(chat_words, encoder="qwen2.5", weights=True),
    "OvisTokenizer": partial(chat_words, encoder="qwen3", cut=_after_background),
    "Krea2Tokenizer": partial(_QWEN3_VL, cut=after_system),
    "MageFlowTokenizer": partial(_QWEN3_VL, cut=after_system),
    "JoyImageTokenizer": partial(_QWEN3_VL, cut=_first(34)),
    "BooguTokenizer": partial(_QWEN3_VL, template=_boogu_template),
    "Ideogram4Tokenizer": _QWEN3_VL,
    "Ideogram4Qwen3VLTokenizer": _QWEN3_VL,
}
