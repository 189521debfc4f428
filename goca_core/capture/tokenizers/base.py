"""Common to all tokenizer adapters: the positions of ComfyUI's tokens, and matching them to a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from ...words.build import Token
from ...words.text import EMBEDDING
from ...words.word_map import WordMap, WordMapError

Span = tuple[int, int]
# (tokenizer of one text encoder, text) -> the ids without start and end, and the range of characters of each.
TokenSpans = Callable[[Any, str], tuple[list[int], list[Span]]]
# (CLIP, text) -> the word map of the text.
Adapter = Callable[[Any, str], WordMap]
# The whole text as one run, for `measured_spans`.
WHOLE = r"(?s:.+)"


class PlacedToken(NamedTuple):
    position: int
    token: Any  # an id, or the vector of a textual inversion embedding
    word: int  # ComfyUI's number of the weighted segment or embedding; 0 for start, end and padding
    kind: str


def place(sub: Any, chunks: list[Any]) -> Iterator[PlacedToken]:
    """Every token that has a position in the conditioning, in order."""
    offset = 0
    for chunk in chunks:
        # ComfyUI drops vectors that do not fit the encoder; later tokens move up and the chunk is padded.
        kept = [entry for entry in chunk if not is_vector(entry[0]) or entry[0].shape[-1] == sub.embedding_size]
        kept += [(sub.pad_token, 1.0, 0)] * (len(chunk) - len(kept))
        ended = sub.end_token is None
        for index, (token, _, word) in enumerate(kept):
            if word:
                kind = "word"
            elif index == 0 and sub.start_token is not None:
                kind = "start"
            else:
                # The padding may have the id of the end token (CLIP-L) or of "!" (CLIP-G and CLIP-H), so only the
                # position distinguishes them.
                kind, ended = "pad" if ended else "end", True
            yield PlacedToken(offset + index, token, word, kind)
        offset += len(chunk)


def is_vector(token: Any) -> bool:
    return hasattr(token, "shape") and len(token.shape) > 0


def length_of(chunks: list[Any]) -> int:
    """Number of tokens in the conditioning that ComfyUI makes from these chunks."""
    return sum(len(chunk) for chunk in chunks)


class PromptTokens:
    """Matches a prompt with the tokens that ComfyUI makes from it.

    ``weights``: whether ComfyUI parses weights in it, such as (word:1.2). ``plain``: the prompt without that syntax.
    ``breaks``: positions in it where a word ends although no space follows.
    """

    def __init__(self, sub: Any, chunks: list[Any], text: str, spans: TokenSpans, weights: bool = True) -> None:
        self._sub, self._spans = sub, spans
        self._placed = list(place(sub, chunks))
        self._queue = [p for p in self._placed if p.word]
        self._pieces: dict[int, str] = {}
        self.length = length_of(chunks)
        self.plain, self._segments = plain_of(text, weights and not getattr(sub, "disable_weights", False))
        self.breaks = [edge for segment in self._segments for edge in segment]

    def tokens(self, offset: int = 0) -> list[Token]:
        """Every token with its characters; ``offset``: number of tokens before them in the conditioning."""
        tokens = [Token(p.position, int(p.token), self._piece(p.token), p.kind) for p in self._placed if not p.word]
        for start, end in self._segments:
            # ComfyUI splits a segment before every "embedding:" that follows a space.
            splits = [m.start() for m in re.finditer(rf"(?<=\s){EMBEDDING}", self.plain[start:end])]
            for a, b in pairwise([0, *splits, end - start]):
                tokens += self._part(start + a, start + b, b < end - start)
        if self._queue:
            raise lost(self.plain)
        return moved(tokens, offset)

    def _part(self, start: int, end: int, followed: bool) -> list[Token]:
        """Take the tokens of a part; ``followed``: by another embedding."""
        named = re.compile(rf"{EMBEDDING}\s*([^\s<\[]*)").match(self.plain, start, end)
        if named is None or self._sub.embedding_directory is None:
            # Older versions of ComfyUI drop the space before an embedding.
            shorter = followed and self.plain[end - 1] in " \n" and not self._fits(self._ids(self.plain[start:end]))
            end -= shorter
            return self._text(self.plain[start:end], range(start, end))
        # A name ends at a space, "<" or "["; commas at its end belong to the prompt unless a file really has that name.
        vectors = self._vectors()
        full = named.end()
        bare = named.start(1) + len(named[1].strip(","))
        # In older versions of ComfyUI it ends at a space alone.
        wide = re.compile(r"\S*").match(self.plain, named.start(1), end)
        ends = (bare, full, full if wide is None else wide.end())
        name_end = next((each for each in ends if self._fits(self._ids(self._after_name(each, end)[0]))), full)
        token = [Token(p.position, -1, self.plain[start:name_end], "embedding", start, name_end) for p in vectors]
        return token + self._text(*self._after_name(name_end, end))

    def _after_name(self, start: int, end: int) -> tuple[str, list[int]]:
        """What ComfyUI tokenises after the name of an embedding, and the place of each character in the plain prompt.

        One space is left of any between words, and one stands between commas and whatever follows them.
        """
        after = start
        while after < end and self.plain[after] == ",":
            after += 1
        text, places = self.plain[start:after], list(range(start, after))
        words = [match.span() for match in re.compile(r"\S+").finditer(self.plain, after, end)]
        for a, b in words or ([(end, end)] if places else []):
            if places:
                text, places = f"{text} ", [*places, a - 1]
            text, places = text + self.plain[a:b], [*places, *range(a, b)]
        return text, places

    def _vectors(self) -> list[PlacedToken]:
        """Take the vectors of one embedding; there are none if ComfyUI did not find its file."""
        word = self._queue[0].word if self._queue else 0
        count = 0
        while count < len(self._queue) and self._queue[count].word == word and is_vector(self._queue[count].token):
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _ids(self, text: str) -> list[int]:
        return self._spans(self._sub, text)[0]

    def _fits(self, ids: list[int]) -> bool:
        """Whether the next tokens are exactly these."""
        return [None if is_vector(p.token) else p.token for p in self._queue[: len(ids)]] == ids

    def _text(self, text: str, places: Sequence[int]) -> list[Token]:
        """Take the tokens of a text, whose characters have these places in the plain prompt."""
        ids, spans = self._spans(self._sub, text)
        if not self._fits(ids):
            raise lost(self.plain)
        taken, self._queue = self._queue[: len(ids)], self._queue[len(ids) :]
        ends = [*places, places[-1] + 1] if places else [0]
        return [
            Token(
                p.position, int(p.token), self._piece(p.token), "word", ends[a], ends[b - 1] + 1 if b > a else ends[a]
            )
            for p, (a, b) in zip(taken, spans, strict=True)
        ]

    def _piece(self, token: int) -> str:
        """The text of a token to show to users; part of a character becomes the replacement character."""
        if token not in self._pieces:
            text = str(self._sub.tokenizer.decode([int(token)])).strip()
            self._pieces[token] = text.removeprefix("##") or text  # BERT marks tokens that do not begin a word
        return self._pieces[token]


def moved(tokens: list[Token], places: int) -> list[Token]:
    """The tokens, so many places later in the conditioning (earlier if negative)."""
    return [replace(token, position=token.position + places) for token in tokens] if places else tokens


def within(token: Token, start: int, end: int) -> Token:
    """A token of a filled-in template, with its characters in the prompt, which is at ``start`` to ``end`` in the template."""
    # A token may overlap the border between prompt and template (line breaks do).
    a, b = max(token.start, start) - start, min(token.end, end) - start
    if token.kind in ("word", "embedding") and a >= b:
        return replace(token, kind="other", start=0, end=0)
    return replace(token, start=a, end=b)


def lost(plain: str) -> WordMapError:
    """The error for tokens that do not match the prompt."""
    excerpt = " ".join(plain.split())
    excerpt = excerpt if len(excerpt) <= 60 else f"{excerpt[:60]}…"
    return WordMapError(
        f'The tokens of the prompt "{excerpt}" could not be traced back to its words; remove unusual characters from the '
        "prompt, or report this prompt."
    )


def plain_of(text: str, weights: bool = True) -> tuple[str, list[Span]]:
    """The prompt without weights syntax, and the spans in it that ComfyUI tokenises separately."""
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    escaped = escape_important(text)
    parsed = [segment for segment, _ in token_weights(escaped, 1.0)] if weights else [escaped]
    plain, segments = "", []
    for segment in map(unescape_important, parsed):
        segments.append((len(plain), len(plain) + len(segment)))
        plain += segment
    return plain, segments


def inner(sub: Any) -> slice:
    """The range of a tokenizer's ids that ComfyUI uses: all but start and end."""
    return slice(sub.tokens_start, -1 if sub.tokenizer_adds_end_token else None)


def fast_spans(sub: Any, text: str) -> tuple[list[int], list[Span]] | None:
    """Ids and character ranges from a fast tokenizer; None from a slow one, which does not give ranges."""
    if not getattr(sub.tokenizer, "is_fast", False):
        return None
    encoded, used = sub.tokenizer(text, return_offsets_mapping=True), inner(sub)
    return list(encoded["input_ids"][used]), [(a, b) for a, b in encoded["offset_mapping"][used]]


def by_byte(text: str) -> list[int]:
    """For each byte of a text, the number of its character."""
    return [place for place, char in enumerate(text) for _ in char.encode()]


def measured_spans(
    sub: Any, text: str, length: Callable[[int], int], owners: Callable[[str], list[list[int]]], runs: str = r"\S+"
) -> tuple[list[int], list[Span]]:
    """Ids and character ranges from the lengths of the tokens, for slow tokenizers.

    ``runs``: parts of the text that are tokenised separately, by default those without spaces. ``owners``: the possible
    readings of a run by the tokenizer; each lists, unit by unit (such as byte by byte), the character that the unit
    belongs to. ``length``: length of a token in these units. If no reading has the total length of the tokens, each token
    gets the whole run.
    """
    ids: list[int] = []
    spans: list[Span] = []
    for run in re.finditer(runs, text):
        found = list(sub.tokenizer(run[0])["input_ids"][inner(sub)])
        edges = [0]
        for token in found:
            edges.append(edges[-1] + length(token))
        for units in owners(run[0]):
            if found and edges[-1] == len(units):
                spans += [(run.start() + units[a], run.start() + units[b - 1] + 1) for a, b in pairwise(edges)]
                break
        else:
            spans += [run.span()] * len(found)
        ids += found
    return ids, spans
