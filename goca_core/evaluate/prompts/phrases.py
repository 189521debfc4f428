"""Phrases that match one place of a text and no other, in the syntax of `words.resolve`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...words.build import Token, build
from ...words.match import find_occurrences
from ...words.text import fold_words, split_words
from ...words.word_map import WordMap


class Text:
    """The words of a text, numbered as in the word map of any text encoder."""

    def __init__(self, text: str) -> None:
        spans = split_words(text)
        tokens = [Token(place, place, text[a:b], "word", a, b) for place, (a, b) in enumerate(spans)]
        self.map: WordMap = build(text, text, "plain", len(tokens), tokens)

    def phrase(self, start: int, end: int) -> str:
        """A phrase that matches only the words at these characters; empty if none of them is a content word."""
        words = self.map.words
        own = tuple(i for i, word in enumerate(words) if start <= word.start and word.end <= end and word.keys)
        if not any(words[i].content for i in own):
            return ""
        return self._numbered(" ".join(self.map.plain[start:end].replace(",", " ").split()), own)

    def classes(self, spellings: Mapping[int, Iterable[tuple[str, ...]]]) -> dict[int, tuple[str, ...]]:
        """Phrases that name each class, with the words around the name, as in "red circle".

        spellings: class id -> the folded words of each of its names. Where two names overlap, the longer one wins. Where a
        phrase holds several names, as in "a cat dog", each class gets only its name.
        """
        found = sorted(
            ((run, number) for number, known in spellings.items() for keys in known for run in self._runs(keys)),
            key=lambda pair: (-len(pair[0]), pair),
        )
        taken: set[int] = set()
        kept: dict[int, list[tuple[int, ...]]] = {}
        for run, number in found:
            if taken.isdisjoint(run):
                taken.update(run)
                kept.setdefault(number, []).append(run)
        chunks = self.map.chunks()

        def whole(run: tuple[int, ...]) -> tuple[int, ...]:
            around = next((chunk for chunk in chunks if set(run) <= set(chunk)), run)
            return run if (taken - set(run)) & set(around) else around

        return {
            number: tuple(self._numbered(self._spoken(words), words) for words in sorted(map(whole, kept[number])))
            for number in sorted(kept)
        }

    def rest(self, taken: Iterable[str]) -> list[str]:
        """Phrases for everything else that the text names."""
        return [phrase.replace(",", " ") for phrase in self.map.rest(taken)]

    def _runs(self, keys: tuple[str, ...]) -> list[tuple[int, ...]]:
        return find_occurrences(keys, self.map.words)

    def _spoken(self, run: tuple[int, ...]) -> str:
        return " ".join(self.map.words[i].text for i in run)

    def _numbered(self, phrase: str, own: tuple[int, ...]) -> str:
        """The phrase, with the number of its occurrence if its words occur elsewhere too."""
        runs = self._runs(fold_words(phrase))
        if runs == [own]:
            return phrase
        if own in runs:
            return f"{phrase}#{runs.index(own) + 1}"
        # In "a, a a", the second entity starts inside the first match of its words, so its words are named one by one.
        return ", ".join(f"{self.map.words[i].text}#{self.map.words[i].occurrence}" for i in own)
