"""Find a phrase in the words of a prompt, and explain what the prompt has instead if it is missing."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .text import FUNCTION_WORDS, TIES, fold, fold_words, split_words

if TYPE_CHECKING:
    from .word import Word

Occurrence = tuple[int, ...]
"""The words of one occurrence of a phrase, as indices."""

# More digits cannot be the number of an occurrence, and Python refuses to convert very long numbers.
_NUMBERED = re.compile(r"(.*\S)\s*#(\d{1,9})", re.DOTALL)
# The weight at the end of a weighted part, such as (red circle:1.2). Whatever Python reads as a number is one.
_WEIGHT = re.compile(r":\s*[-+]?(?:nan|inf|[\d.]+(?:e[-+]?\d+)?)\s*(?=\))", re.IGNORECASE)
# The most words of a prompt, and characters of a word or phrase, that an error message quotes.
_QUOTED_WORDS, _QUOTED_LETTERS = 40, 80
# The most words of a phrase for which another order is suggested, and of others between them.
_REORDERED, _BETWEEN = 8, 2
_ARTICLES = ("a", "an", "the")


class PhraseError(ValueError):
    """A phrase cannot be turned into token positions."""


def match_phrase(phrase: str, plain: str, words: Sequence[Word]) -> list[Occurrence]:
    """Find the occurrences that a phrase means: all of them, or the one whose number follows a `#`.

    A phrase may have weights, as it has in a prompt: `(red circle:1.2)`. Raises PhraseError if there is none.
    """
    if not fold_words(phrase):
        raise PhraseError(f"The phrase {quote(phrase)} contains no word; write words of the prompt.")
    found = _numbered(phrase, plain, words)
    if not found:
        # Only now, because language models have the weights as words.
        bare = _without_weights(phrase)
        found = _numbered(bare, plain, words) if bare != phrase else []
    if not found:
        raise PhraseError(_missing(phrase, plain, words))
    return found


def _numbered(phrase: str, plain: str, words: Sequence[Word]) -> list[Occurrence]:
    """The occurrences that a phrase without weights means, if any. Raises PhraseError for a number that is not there."""
    found = find_occurrences(fold_words(phrase), words)
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
    return found


def find_occurrences(
    keys: tuple[str, ...], words: Sequence[Word], places: Mapping[str, Sequence[int]] | None = None
) -> list[Occurrence]:
    """Find every place where the folded words follow each other, without overlap. Punctuation between them is skipped.

    places: what `places_of` gives for the words, if many phrases are looked up in them.
    """
    found: list[Occurrence] = []
    free = 0
    for start in (range(len(words)) if places is None else places.get(keys[0], ())) if keys else ():
        occurrence = _occurrence_at(start, keys, words) if start >= free else ()
        if occurrence:
            found.append(occurrence)
            free = occurrence[-1] + 1
    return found


def places_of(words: Sequence[Word]) -> dict[str, list[int]]:
    """The words, as indices, that a phrase with this first folded word may begin with."""
    places: dict[str, list[int]] = {}
    for i, word in enumerate(words):
        for first in dict.fromkeys(key[0] for key in word.keys):
            places.setdefault(first, []).append(i)
    return places


def spelled(first: int, last: int, plain: str, words: Sequence[Word]) -> str:
    """The words from one index to another, in one line that reads as these words."""
    text = words[first].text
    for before, word in pairwise(words[first : last + 1]):
        text += plain[before.end : word.start]
        # Brackets have parted "stars" from "night" in "((stars))night", of which the plain text shows nothing.
        if before.end == word.start and len(split_words(before.text + word.text)) == 1:
            text += " "
        text += word.text
    return " ".join(text.split())


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


def _without_weights(phrase: str) -> str:
    return re.sub(r"[()]", " ", _WEIGHT.sub("", phrase))


def _squeeze(text: str) -> str:
    return "".join(fold(text).split())


def _missing(phrase: str, plain: str, words: Sequence[Word]) -> str:
    numbered = _NUMBERED.fullmatch(phrase.strip())
    phrase = numbered[1] if numbered else phrase
    bare = _without_weights(phrase)
    named = [w for w in words if w.content] or [w for w in words if w.keys]
    if not named:
        return f"{quote(phrase)} is not in the prompt, which has no words."
    listed = ", ".join(_short(w.name) for w in named[:_QUOTED_WORDS]) + (", …" if len(named) > _QUOTED_WORDS else "")
    message = f"{quote(phrase)} is not in the prompt, whose words are: {listed}"
    near = _reordered(fold_words(bare), plain, words) or _misspelled(bare, plain, words, named)
    return f"{message}; did you mean {quote(near)}?" if near else f"{message}."


def _reordered(keys: tuple[str, ...], plain: str, words: Sequence[Word]) -> str:
    """The fewest words in a row that hold the words of a phrase in another order, or with a few others in between."""
    most = len(keys) + _BETWEEN
    for size in range(len(keys), min(most, len(words)) + 1) if len(keys) <= _REORDERED else ():
        for first in range(len(words) - size + 1):
            part = words[first : first + size]
            own = Counter(fold(word.text) for word in part)
            # Nothing is named across words such as "on", unless the phrase has them.
            between = own.keys() - {*keys, *_ARTICLES}
            if Counter(keys) <= own and between.isdisjoint(FUNCTION_WORDS) and _in_a_row(part):
                return spelled(first, first + size - 1, plain, words)
    return ""


def _in_a_row(words: Sequence[Word]) -> bool:
    """Whether no comma, or other punctuation that ends what a prompt names, is among the words."""
    return all(word.keys or fold(word.text) in TIES for word in words)


def _misspelled(phrase: str, plain: str, words: Sequence[Word], named: Sequence[Word]) -> str:
    """What is spelled nearly like a phrase: a single word, or as many consecutive words as the phrase has."""
    size, spoken = len(fold_words(phrase)), [i for i, w in enumerate(words) if w.keys]
    near = {fold(w.text): w.text for w in named}
    for first, last in zip(spoken, spoken[size - 1 :], strict=False):
        if words[last].content and _in_a_row(words[first : last + 1]):
            text = spelled(first, last, plain, words)
            near[fold(text)] = text
    close = difflib.get_close_matches(fold(phrase), near, n=1, cutoff=0.6)
    return near[close[0]] if close else ""
