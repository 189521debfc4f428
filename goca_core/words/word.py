"""A word of a prompt, and a token of its conditioning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .text import EMBEDDING, fold_words


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
