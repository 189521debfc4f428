"""Llama 3's byte-level tokens."""

from __future__ import annotations

from typing import Any

from .base import Span, measured_spans


def llama_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """From the lengths of the tokens, because some versions of the library give wrong character positions.

    These versions also look up characters where the vocabulary has bytes, and drop those that they do not find, most of
    all spaces.
    """
    known = {piece for piece in sub.inv_vocab.values() if len(piece) == 1}

    def owners(run: str) -> list[list[int]]:
        by_bytes = [place for place, char in enumerate(run) for _ in char.encode()]
        return [by_bytes, [place for place, char in enumerate(run) if char in known]]

    return measured_spans(sub, text, lambda token: len(sub.inv_vocab[token]), owners, r"(?s:.+)")
