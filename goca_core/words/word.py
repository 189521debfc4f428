"""A word of a prompt, and a token of its conditioning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .text import EMBEDDING, fold_words

_KINDS = "word", "start", "end", "pad", "embedding", "other"


def is_within(value: Any, low: int, high: int) -> bool:
    """Whether a value of a file is a whole number from ``low`` to ``high``.

    >>> is_within(3, 0, 3), is_within(4, 0, 3), is_within(1.0, 0, 3), is_within(True, 0, 3)
    (True, False, False, False)
    """
    return type(value) is int and low <= value <= high


@dataclass(frozen=True)
class Piece:
    """One token of the conditioning; `kind` is word, start, end, pad, embedding or other."""

    position: int
    text: str
    kind: str
    word: int | None
    token_id: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Piece:
        return cls(**data)

    def is_one_of(self, words: int) -> bool:
        """Whether it is a token that belongs to none or to one of so many words."""
        known = self.word is None or is_within(self.word, 0, words - 1)
        return known and self.kind in _KINDS and type(self.token_id) is int


@dataclass(frozen=True)
class Word:
    """One word (or run of punctuation) of the prompt; `start` and `end` are characters of `WordMap.plain`."""

    text: str
    start: int
    end: int
    positions: tuple[int, ...]
    occurrence: int
    content: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Word:
        return cls(**{**data, "positions": tuple(data["positions"])})

    def is_in(self, plain: str) -> bool:
        """Whether it is a word at its place in a text."""
        placed = is_within(self.start, 0, len(plain)) and is_within(self.end, self.start, len(plain))
        return placed and is_within(self.occurrence, 1, len(plain) + 1) and type(self.content) is bool

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """The folded spellings that name this word; none for punctuation."""
        whole = fold_words(self.text)
        if self.text.startswith(EMBEDDING):
            return whole, fold_words(self.text[len(EMBEDDING) :])
        return (whole,) if whole else ()

    @property
    def name(self) -> str:
        """The phrase that means only this occurrence; the first one has no number."""
        return self.text if self.occurrence == 1 else f"{self.text}#{self.occurrence}"
