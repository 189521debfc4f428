"""The word map: which token positions of a conditioning belong to which words of its prompt.

A `WordMap` is built once per prompt from the text encoder's tokens (`build.build`). It finds the tokens of a phrase
(`find`), the tokens of all content words (`content`), and everything else that the prompt names (`rest`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .match import PhraseError, find_occurrences, match_phrase, places_of, quote, spelled
from .text import EMBEDDING, FUNCTION_WORDS, STOP_WORDS, TIES, fold, fold_words, visible
from .word import Piece, Word, is_within

# Far more than any text encoder reads; what is larger was not made by `build` from a prompt.
MOST_TOKENS = 2**14

# From the last word of a weighted part to the first of the next one, as in (red circle:1.2)(blue sky:0.8).
_JOINT = re.compile(r"(?::[^():]*)?(?<!\))\)+\(+")


class WordMapError(ValueError):
    """A prompt cannot be mapped to token positions, or a word map belongs to another prompt or text encoder."""


@dataclass(frozen=True)
class Phrase:
    """An object the user asked for: the phrases pooled into it and their token positions. ``label``: see `label_of`."""

    label: str
    parts: tuple[str, ...]
    tokens: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Phrase:
        return cls(data["label"], tuple(data["parts"]), tuple(data["tokens"]))


@dataclass(frozen=True)
class WordMap:
    """The words of one prompt and their token positions in its conditioning.

    ``text``: the prompt as typed. ``plain``: the text that the tokens cover. ``encoder``: name of the text encoder.
    ``length``: number of tokens of the conditioning. ``pieces``: its tokens. ``special``, ``pad``: positions of the start
    and end tokens, and of padding.
    """

    text: str
    plain: str
    encoder: str
    length: int
    words: tuple[Word, ...]
    pieces: tuple[Piece, ...]
    special: tuple[int, ...]
    pad: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WordMap:
        """The word map of `to_json`. Raises WordMapError for anything else, such as words outside of the text.

        >>> WordMap.from_json({"text": "a cat"})
        Traceback (most recent call last):
        ...
        goca_core.words.word_map.WordMapError: The words of the prompt are damaged; encode the prompt again.
        """
        try:
            made = cls(
                data["text"],
                data["plain"],
                data["encoder"],
                data["length"],
                tuple(Word.from_json(w) for w in data["words"]),
                tuple(Piece.from_json(p) for p in data["pieces"]),
                tuple(data["special"]),
                tuple(data["pad"]),
            )
            fits = made._fits_together()
        except (KeyError, TypeError, AttributeError) as error:
            raise WordMapError(_DAMAGED) from error
        if not fits:
            raise WordMapError(_DAMAGED)
        return made

    def _fits_together(self) -> bool:
        """Whether all parts have the right types, and refer to tokens, words and text that exist."""
        texts = (self.text, self.plain, self.encoder, *(w.text for w in self.words), *(p.text for p in self.pieces))
        positions = [*self.special, *self.pad, *(p.position for p in self.pieces)]
        positions += [position for w in self.words for position in w.positions]
        return (
            is_within(self.length, 1, MOST_TOKENS)
            and max(len(self.words), len(self.pieces)) <= MOST_TOKENS
            and all(type(text) is str for text in texts)
            and all(is_within(position, 0, self.length - 1) for position in positions)
            and all(w.is_in(self.plain) for w in self.words)
            and all(p.is_one_of(len(self.words)) for p in self.pieces)
        )

    def names(self) -> tuple[str, ...]:
        """A name for each word that means only this word: numbered from `cat#1` on if the prompt repeats it."""
        again = {fold(word.text) for word in self.words if word.occurrence > 1}
        return tuple(f"{w.text}#{w.occurrence}" if fold(w.text) in again else w.text for w in self.words)

    def find(self, phrase: str, stop: Iterable[str] | str = ()) -> tuple[int, ...]:
        """Find the token positions of a phrase: whole words in order. Case, punctuation and extra spaces do not matter.

        A phrase that occurs several times means all of its occurrences; `cat#2` means only the second one. Words in `stop`
        must match too, but their positions are left out, unless the phrase has no other words.
        Raises PhraseError if the phrase is not in the prompt.
        """
        words = [w for occurrence in match_phrase(phrase, self.plain, self.words) for w in occurrence]
        kept = [w for w in words if self._is_content(w, _stop_set(stop))] or words
        return self._positions(kept)

    def content(self, stop: Iterable[str] | str = STOP_WORDS) -> tuple[int, ...]:
        """Token positions of all content words of the prompt: everything but punctuation and the words in `stop`."""
        stops = _stop_set(stop)
        return self._positions(i for i in range(len(self.words)) if self._is_content(i, stops))

    def chunks(self, stop: Iterable[str] | str = FUNCTION_WORDS) -> tuple[tuple[int, ...], ...]:
        """Everything that the prompt names, as tuples of word indices.

        The prompt is split at punctuation, line breaks, embeddings, the words in `stop`, and between two weighted parts
        without a space, as in `(red circle:1.2)(blue sky:0.8)`.
        """
        stops = _stop_set(stop)
        joints = [match.span() for match in _JOINT.finditer(self.text)]
        chunks: list[tuple[int, ...]] = []
        chunk: list[int] = []
        for i, word in enumerate(self.words):
            between = self.plain[self.words[i - 1].end : word.start] if i else ""
            # Text without tokens (an unknown embedding) separates words like a line break does.
            separated = "\n" in between or bool(visible(between).strip()) or self._between_brackets(i, joints)
            if not word.keys and self._joins(i) and chunk:
                continue  # the hyphen of "wooden-table" is not part of the chunk, but does not end it either
            embedding = word.text.startswith(EMBEDDING)
            if chunk and (separated or embedding or not self._is_content(i, stops)):
                chunks.append(tuple(chunk))
                chunk = []
            if embedding:
                chunks.append((i,))
            elif self._is_content(i, stops):
                chunk.append(i)
        return tuple(chunks + ([tuple(chunk)] if chunk else []))

    def rest(self, phrases: Iterable[Any]) -> list[str]:
        """The chunks that have no token in common with the given phrases, as phrases for `find`.

        phrases: strings, or objects with `tokens`, such as `Phrase`.
        """
        return [phrase.parts[0] for phrase in self.rest_phrases(phrases)]

    def rest_phrases(self, phrases: Iterable[Any]) -> list[Phrase]:
        """The chunks that have no token in common with the given phrases, each with its tokens.

        phrases: strings, or objects with `tokens`, such as `Phrase`. A chunk that is repeated, in any spelling that `find`
        takes for the same, is one phrase with the tokens of all its places. Raises PhraseError for a string that is not in
        the prompt.

        >>> from goca_core.words.build import Token, build
        >>> text = "Sky, cat, sky"
        >>> spans = [(0, 3), (3, 4), (5, 8), (8, 9), (10, 13)]
        >>> tokens = [Token(n, n, text[a:b], "word", a, b) for n, (a, b) in enumerate(spans)]
        >>> build(text, text, "toy", 5, tokens).rest_phrases(["cat"])
        [Phrase(label='Sky', parts=('Sky',), tokens=(0, 4))]
        """
        taken = {t for p in phrases for t in (self.find(p) if isinstance(p, str) else p.tokens)}
        free = [c for c in self.chunks() if taken.isdisjoint(self._positions(c))]
        wholly, places = set(free), places_of(self.words)
        numbers: dict[tuple[str, ...], dict[tuple[int, ...], int]] = {}
        named: dict[tuple[tuple[str, ...], int], tuple[str, set[int]]] = {}
        for chunk in free:
            phrase = self._spelled(chunk)
            keys = fold_words(phrase)
            if keys not in numbers:
                same = find_occurrences(keys, self.words, places)
                # Without a number, the phrase would pool all its occurrences. It needs one if an occurrence is taken, or is
                # part of a longer chunk.
                numbers[keys] = {} if wholly.issuperset(same) else {one: i for i, one in enumerate(same, start=1)}
            number = numbers[keys].get(chunk, 0)
            phrase = f"{phrase}#{number}" if number else phrase
            named.setdefault((keys, number), (phrase, set()))[1].update(self._positions(chunk))
        # The tokens are kept, rather than found again by the phrase, which may find others. In scripts without spaces a
        # token may hold two of them, which are then one.
        found: dict[tuple[int, ...], str] = {}
        for phrase, tokens in named.values():
            found.setdefault(tuple(sorted(tokens)), phrase)
        return [Phrase(label_of((phrase,)), (phrase,), tokens) for tokens, phrase in found.items()]

    def each(self) -> list[Phrase]:
        r"""Every content word as a phrase with its tokens, as `find` knows it by its name: `cat`, `cat#2`.

        Words that share a token, such as characters of scripts without spaces and emojis, are one phrase, because a token
        has one map.

        >>> from goca_core.words.build import Token, build
        >>> text = "\u7ea2\u8272\u7684"  # two words without a space
        >>> tokens = [Token(0, 7, text[:2], "word", 0, 2), Token(1, 8, text[2], "word", 2, 3)]
        >>> phrases = build(text, text, "toy", 2, tokens).each()
        >>> [phrase.label == part for phrase, part in zip(phrases, (text[:2], text[2]), strict=True)]
        [True, True]
        >>> [phrase.tokens for phrase in phrases]
        [(0,), (1,)]
        """
        groups = self._groups()
        places: dict[str, list[tuple[int, ...]]] = {}
        found: dict[str, Phrase] = {}
        texts = [self._spelled(group) for group in groups]
        for group, text in zip(groups, texts, strict=True):
            places.setdefault(fold(text), []).append(group)
        for group, text in zip(groups, texts, strict=True):
            same = places[fold(text)]
            number = self.words[group[0]].occurrence if len(group) == 1 else same.index(group) + 1
            # The first one's name has no number, and means all of them.
            name = text if number == 1 else f"{text}#{number}"
            tokens = self._positions(i for one in (same if number == 1 else [group]) for i in one)
            found.setdefault(name, Phrase(label_of((name,)), (name,), tokens))
        return list(found.values())

    def single(self) -> list[tuple[Phrase, tuple[int, ...]]]:
        """Every content word by itself, with its index: `cat#1`, `cat#2`. Words that share a token are one, as in `each`."""
        groups, names = self._groups(), self.names()
        texts = [self._spelled(group) if len(group) > 1 else names[group[0]] for group in groups]
        found = []
        for k, (group, text) in enumerate(zip(groups, texts, strict=True)):
            name = f"{text}#{texts[:k].count(text) + 1}" if texts.count(text) > 1 else text
            found.append((Phrase(name, (name,), self._positions(group)), group))
        return found

    def _groups(self) -> list[tuple[int, ...]]:
        """The content words as indices; those that share a token are together."""
        groups: list[tuple[int, ...]] = []
        for i in (i for i, word in enumerate(self.words) if word.content):
            shares = groups and not set(self._positions(groups[-1])).isdisjoint(self.words[i].positions)
            groups[-1:] = [(*groups[-1], i)] if shares else [*groups[-1:], (i,)]
        return groups

    def check(self, length: int) -> None:
        """Raise WordMapError if this map cannot belong to a conditioning or recording of `length` tokens."""
        if length != self.length:
            raise WordMapError(
                f"The word map belongs to a conditioning of {self.length} tokens but this one has {length}: use the words of "
                "the same prompt and text encoder, and a conditioning that was not combined with another one."
            )

    def check_same(self, recorded: WordMap | None) -> None:
        """Raise WordMapError if this map belongs to another prompt than that of the conditioning, if that one is known."""
        if recorded is None or recorded is self:
            return
        known = {(piece.position, piece.token_id) for piece in recorded.pieces}
        if any((piece.position, piece.token_id) not in known for piece in self.pieces):
            raise WordMapError(
                f"The words belong to another prompt, {quote(self.text)}, than the conditioning, which was made from "
                f"{quote(recorded.text)}; disconnect them, or make them from the text and the CLIP of the conditioning."
            )

    def describe(self) -> str:
        """The words as a readable table: name, token positions, sub-word pieces, and whether a word is not content."""
        named = [w for w in self.words if w.keys]
        used = self._positions(range(len(self.words)))
        lines = [
            f"{len(named)} word{'s' if len(named) != 1 else ''} in {len(used)} of {self.length} tokens ({self.encoder})"
        ]
        width = min(24, max((len(w.name) for w in named), default=0))
        texts = {p.position: p.text for p in self.pieces}
        for word in named:
            line = f"{word.name:<{width}}  {' '.join(map(str, word.positions))}"
            parts = "·".join(texts[p] for p in word.positions)
            # Parts of a single character (in many scripts) and embedding vectors have no readable text.
            if len(word.positions) > 1 and "\ufffd" not in parts and not word.text.startswith(EMBEDDING):
                line += f"  ({parts})"
            lines.append(line + ("" if word.content else "  (not content)"))
        return "\n".join(lines)

    def _positions(self, words: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted({p for i in words for p in self.words[i].positions}))

    def _spelled(self, chunk: tuple[int, ...]) -> str:
        return spelled(chunk[0], chunk[-1], self.plain, self.words)

    def _between_brackets(self, index: int, joints: Sequence[tuple[int, int]]) -> bool:
        """Whether the word before this one ends a weighted part, and this one begins another, without a space.

        joints: what is between such parts in the prompt as typed. The word map does not say where in it a word is, but
        words are in it as they are.
        """
        before, after = self.words[index - 1], self.words[index]
        return before.end == after.start and any(
            self.text.endswith(before.text, 0, start) and self.text.startswith(after.text, end) for start, end in joints
        )

    def _is_content(self, index: int, stops: frozenset[str]) -> bool:
        keys = self.words[index].keys
        return bool(keys) and not (len(keys[0]) == 1 and keys[0][0] in stops)

    def _joins(self, index: int) -> bool:
        """Whether this punctuation joins its neighbours into one word, as in wooden-table or long_hair."""
        word = self.words[index]
        joins = fold(word.text) in TIES and 0 < index < len(self.words) - 1
        return joins and self.words[index - 1].end == word.start and word.end == self.words[index + 1].start


def parse_phrases(text: str) -> list[tuple[str, ...]]:
    r"""Parse the objects of a text, one per line. Commas separate phrases that are pooled; write `\,` for a literal comma.

    >>> parse_phrases("cat, kitten\ngrass")
    [('cat', 'kitten'), ('grass',)]
    """
    out = []
    for line in text.splitlines():
        parts = (part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", line))
        pooled = tuple(part for part in parts if part)
        if pooled:
            out.append(pooled)
    return out


def label_of(parts: Iterable[str]) -> str:
    """What to write for these phrases pooled into one object: `parse_phrases` reads the same phrases out of it."""
    escaped = (part.replace(",", "\\,") for part in parts)
    # A backslash at the end of a phrase would take the comma after it along.
    return ", ".join(f"{part} " if part.endswith("\\") else part for part in escaped).rstrip()


def resolve(
    asked: str | Iterable[tuple[str, ...]], word_map: WordMap, stop: Iterable[str] | str = STOP_WORDS
) -> list[Phrase]:
    """The objects asked for, with their tokens; words of `stop` in a phrase give no position (see `WordMap.find`).

    asked: text, one object per line, or what `parse_phrases` made of it.
    """
    phrases: list[Phrase] = []
    for parts in parse_phrases(asked) if isinstance(asked, str) else asked:
        label = label_of(parts)
        tokens = tuple(sorted({t for part in parts for t in word_map.find(part, stop)}))
        for other in phrases:
            if fold(other.label) == fold(label):
                raise PhraseError(f"The phrase {quote(label)} is given twice; remove one of them.")
            if other.tokens == tokens:
                raise PhraseError(
                    f"The phrases {quote(other.label)} and {quote(label)} mean the same words of the prompt; keep one of them, or number "
                    "their occurrences, such as cat#2."
                )
        phrases.append(Phrase(label, parts, tokens))
    if not phrases:
        raise PhraseError("There is no phrase: write words of the prompt, one object per line.")
    return phrases


_DAMAGED = "The words of the prompt are damaged; encode the prompt again."


def _stop_set(stop: Iterable[str] | str) -> frozenset[str]:
    return frozenset(fold(w) for w in (re.split(r"[\s,]+", stop) if isinstance(stop, str) else stop) if w)
