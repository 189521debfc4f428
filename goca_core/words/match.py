"""Finding a phrase among the words of a prompt, and saying what is there when it is not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .text import fold, fold_words

if TYPE_CHECKING:
    from .word import Word

Run = tuple[int, ...]
"""Words that make up a phrase, as indices."""

# Longer numbers are no numbers of occurrences, and Python does not read numbers of any length.
_NUMBERED = re.compile(r"(.*\S)\s*#(\d{1,9})", re.DOTALL)
# Of a prompt, and of a word or phrase, that an error tells.
_SHOWN_WORDS, _SHOWN_LETTERS = 40, 80


class PhraseError(ValueError):
    """A phrase cannot be turned into token positions."""


def choose(phrase: str, plain: str, words: Sequence[Word]) -> list[Run]:
    """The occurrences that a phrase means: all of them, or the one whose number follows a `#`."""
    keys = fold_words(phrase)
    if not keys:
        raise PhraseError(f"The phrase {quote(phrase)} has no word in it.")
    runs = runs_of(keys, words)
    numbered = _NUMBERED.fullmatch(phrase.strip())
    if numbered:
        # A prompt may really say "room #2"; only what is not there as typed is read as the number of an occurrence.
        typed = [run for run in runs if _squeeze(_between(run, plain, words)) == _squeeze(phrase)]
        if typed:
            return typed
        phrase, number = numbered[1], int(numbered[2])
        runs = runs_of(fold_words(phrase), words)
        if runs and not 1 <= number <= len(runs):
            times = "once" if len(runs) == 1 else f"{len(runs)} times"
            raise PhraseError(f"There is no {quote(f'{phrase}#{number}')}: the prompt says {quote(phrase)} {times}.")
        runs = runs[number - 1 : number]
    if not runs:
        raise PhraseError(_missing(phrase, plain, words))
    return runs


def runs_of(keys: tuple[str, ...], words: Sequence[Word]) -> list[Run]:
    """Every place where the folded words follow each other, without overlap; punctuation between them is no obstacle."""
    runs: list[Run] = []
    start = 0
    while keys and start < len(words):
        run = _run_at(start, keys, words)
        if run:
            runs.append(run)
        start = run[-1] + 1 if run else start + 1
    return runs


def quote(text: str) -> str:
    return f'"{_short(text.strip())}"'


def _short(text: str) -> str:
    """A text as an error can tell it, however long somebody made it."""
    return text if len(text) <= _SHOWN_LETTERS else f"{text[: _SHOWN_LETTERS - 1]}…"


def _run_at(index: int, keys: tuple[str, ...], words: Sequence[Word]) -> Run:
    run: list[int] = []
    while keys:
        if index >= len(words):
            return ()
        own = words[index].keys
        key = next((k for k in own if k == keys[: len(k)]), None)
        if key is not None:
            run.append(index)
            keys = keys[len(key) :]
        elif own or not run:
            return ()
        index += 1
    return tuple(run)


def _between(run: Run, plain: str, words: Sequence[Word]) -> str:
    return plain[words[run[0]].start : words[run[-1]].end]


def _squeeze(text: str) -> str:
    return "".join(fold(text).split())


def _missing(phrase: str, plain: str, words: Sequence[Word]) -> str:
    named = [w for w in words if w.content] or [w for w in words if w.keys]
    if not named:
        return f"{quote(phrase)} is not in the prompt, which has no words."
    shown = ", ".join(_short(w.name) for w in named[:_SHOWN_WORDS]) + (", …" if len(named) > _SHOWN_WORDS else "")
    message = f"{quote(phrase)} is not in the prompt, whose words are: {shown}"
    # A slip of the pen is looked for among single words and among neighbours, as many as the phrase has.
    size, spoken = len(fold_words(phrase)), [i for i, w in enumerate(words) if w.keys]
    near = {fold(w.text): w.text for w in named}
    for first, last in zip(spoken, spoken[size - 1 :], strict=False):
        text = " ".join(_between((first, last), plain, words).split())
        near[fold(text)] = text
    close = difflib.get_close_matches(fold(phrase), near, n=1, cutoff=0.6)
    return f"{message}; did you mean {quote(near[close[0]])}?" if close else f"{message}."
