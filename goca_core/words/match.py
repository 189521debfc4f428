"""Find a phrase in the words of a prompt, and explain what the prompt has instead if it is missing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .text import fold, fold_words

if TYPE_CHECKING:
    from .word import Word

Occurrence = tuple[int, ...]
"""The words of one occurrence of a phrase, as indices."""

# More digits cannot be the number of an occurrence, and Python refuses to convert very long numbers.
_NUMBERED = re.compile(r"(.*\S)\s*#(\d{1,9})", re.DOTALL)
# The most words of a prompt, and characters of a word or phrase, that an error message quotes.
_QUOTED_WORDS, _QUOTED_LETTERS = 40, 80


class PhraseError(ValueError):
    """A phrase cannot be turned into token positions."""


def match_phrase(phrase: str, plain: str, words: Sequence[Word]) -> list[Occurrence]:
    """Find the occurrences that a phrase means: all of them, or the one whose number follows a `#`.

    Raises PhraseError if there is none.
    """
    keys = fold_words(phrase)
    if not keys:
        raise PhraseError(f"The phrase {quote(phrase)} contains no word; write words of the prompt.")
    found = find_occurrences(keys, words)
    numbered = _NUMBERED.fullmatch(phrase.strip())
    if numbered:
        # A prompt may contain "room #2" literally. Only if it does not is the number that of an occurrence.
        typed = [one for one in found if _squeeze(_between(one, plain, words)) == _squeeze(phrase)]
        if typed:
            return typed
        phrase, number = numbered[1], int(numbered[2])
        found = find_occurrences(fold_words(phrase), words)
        if found and not 1 <= number <= len(found):
            times = "once" if len(found) == 1 else f"{len(found)} times"
            raise PhraseError(f"There is no {quote(f'{phrase}#{number}')}: the prompt has {quote(phrase)} {times}.")
        found = found[number - 1 : number]
    if not found:
        raise PhraseError(_missing(phrase, plain, words))
    return found


def find_occurrences(keys: tuple[str, ...], words: Sequence[Word]) -> list[Occurrence]:
    """Find every place where the folded words follow each other, without overlap. Punctuation between them is skipped."""
    found: list[Occurrence] = []
    start = 0
    while keys and start < len(words):
        occurrence = _occurrence_at(start, keys, words)
        if occurrence:
            found.append(occurrence)
        start = occurrence[-1] + 1 if occurrence else start + 1
    return found


def quote(text: str) -> str:
    """Quote a text in an error message, shortened if it is long."""
    return f'"{_short(text.strip())}"'


def _short(text: str) -> str:
    return text if len(text) <= _QUOTED_LETTERS else f"{text[: _QUOTED_LETTERS - 1]}…"


def _occurrence_at(index: int, keys: tuple[str, ...], words: Sequence[Word]) -> Occurrence:
    """The words from `index` on if they match all keys, else an empty tuple."""
    found: list[int] = []
    while keys:
        if index >= len(words):
            return ()
        own = words[index].keys
        key = next((k for k in own if k == keys[: len(k)]), None)
        if key is not None:
            found.append(index)
            keys = keys[len(key) :]
        elif own or not found:
            return ()
        index += 1
    return tuple(found)


def _between(occurrence: Occurrence, plain: str, words: Sequence[Word]) -> str:
    return plain[words[occurrence[0]].start : words[occurrence[-1]].end]


def _squeeze(text: str) -> str:
    return "".join(fold(text).split())


def _missing(phrase: str, plain: str, words: Sequence[Word]) -> str:
    named = [w for w in words if w.content] or [w for w in words if w.keys]
    if not named:
        return f"{quote(phrase)} is not in the prompt, which has no words."
    listed = ", ".join(_short(w.name) for w in named[:_QUOTED_WORDS]) + (", …" if len(named) > _QUOTED_WORDS else "")
    message = f"{quote(phrase)} is not in the prompt, whose words are: {listed}"
    # Look for typing errors among single words, and among as many consecutive words as the phrase has.
    size, spoken = len(fold_words(phrase)), [i for i, w in enumerate(words) if w.keys]
    near = {fold(w.text): w.text for w in named}
    for first, last in zip(spoken, spoken[size - 1 :], strict=False):
        text = " ".join(_between((first, last), plain, words).split())
        near[fold(text)] = text
    close = difflib.get_close_matches(fold(phrase), near, n=1, cutoff=0.6)
    return f"{message}; did you mean {quote(near[close[0]])}?" if close else f"{message}."
