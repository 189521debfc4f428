"""Language models of the Qwen family: byte-level tokens of the prompt inside a chat template.

The template's own words are no words of the prompt, although "image", "shape" or "user" may be in both: only tokens of
the characters that the prompt was put at count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...wordbuild import build
from ...words import WordMap
from .prompt import Reader, Span, fast_spans, is_vector, measured_spans, plain_of

_START, _USER, _NEWLINE = 151644, 872, 198  # <|im_start|>, "user" and the line break behind it


def byte_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The vocabulary has one sign for each byte, spaces included."""

    def owners(run: str) -> list[list[int]]:
        return [[i for i, char in enumerate(run) for _ in char.encode()]]

    def length(token: int) -> int:
        return len(sub.inv_vocab[token])

    return fast_spans(sub, text) or measured_spans(sub, text, length, owners, r"(?s:.+)")


def _uncut(_ids: Sequence[Any]) -> int:
    return 0


def _after_system(ids: Sequence[Any]) -> int:
    """Qwen-Image drops what comes before the user's part, and its head too."""
    starts = [place for place, token in enumerate(ids) if token == _START][:2]
    cut = starts[-1] if starts else -1
    if len(ids) - cut > 3 and list(ids[cut + 1 : cut + 3]) == [_USER, _NEWLINE]:
        cut += 3
    # What the host does with a text without any start: it keeps the last token.
    return cut if cut >= 0 else len(ids) - 1


def _words(
    clip: Any, text: str, name: str, encoder: str, cut: Callable[[Sequence[Any]], int], own: tuple[str, ...] = ()
) -> WordMap:
    """``own``: beginnings of a text that brings its own template."""
    template = "{}" if own and text.startswith(own) else clip.tokenizer.llama_template
    before = template.partition("{}")[0]
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    reader = Reader(getattr(clip.tokenizer, name), chunks, template.format(text), byte_spans, weights=False)
    plain, _ = plain_of(text, weights=False)
    ids = [None if is_vector(entry[0]) else entry[0] for entry in chunks[0]]
    first, start, end = cut(ids), len(before), len(before) + len(plain)
    tokens = []
    for token in reader.tokens():
        # A token may straddle the border to the template (line breaks do).
        a, b = max(token.start, start) - start, min(token.end, end) - start
        moved = replace(token, position=token.position - first, start=a, end=b)
        if token.kind in ("word", "embedding") and a >= b:
            moved = replace(moved, kind="other", start=0, end=0)
        if moved.position >= 0:
            tokens.append(moved)
    return build(text, plain, encoder, reader.length - first, tokens)


READERS: dict[str, Callable[[Any, str], WordMap]] = {
    "ZImageTokenizer": partial(_words, name="qwen3_4b", encoder="qwen3", cut=_uncut),
    "QwenImageTokenizer": partial(
        _words,
        name="qwen25_7b",
        encoder="qwen2.5",
        cut=_after_system,
        own=("<|im_start|>", "<|start_header_id|>"),
    ),
}
