"""The words of a prompt, their tokens, and the phrases found in them."""

from __future__ import annotations

from .match import PhraseError
from .text import FUNCTION_WORDS, STOP_WORDS
from .word import Piece, Word
from .word_map import Phrase, WordMap, WordMapError, label_of, parse_phrases, resolve

__all__ = [
    "FUNCTION_WORDS",
    "STOP_WORDS",
    "Phrase",
    "PhraseError",
    "Piece",
    "Word",
    "WordMap",
    "WordMapError",
    "label_of",
    "parse_phrases",
    "resolve",
]
