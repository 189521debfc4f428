"""From a CLIP object of the host and a prompt to the word map of the conditioning that the host makes of them.

The ids and their places are always the host's own (`clip.tokenize`: its chunks, options, weights and embeddings). What
is worked out here is only which characters of the prompt each of them stands for, and that is checked id by id, so that
a wrong map cannot come out silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from ..wordbuild import Token, build
from ..words import WordMap, WordMapError
from ..wordscan import EMBEDDING

KEY = "goca_words"
"""Where a conditioning's dictionary carries its word map."""

# What text encoders give beside the conditioning, that the model puts behind it (Hunyuan-DiT: mT5 after BERT).
_APPENDED = ("conditioning_mt5xl",)

Span = tuple[int, int]

_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def word_map(clip: Any, text: str) -> WordMap:
    """The word map of `text` as this CLIP would encode it."""
    name = type(clip.tokenizer).__name__
    if name not in READERS:
        raise WordMapError(
            f"The words of a prompt cannot be located for the text encoder {name} yet; these can: {', '.join(READERS)}."
        )
    return READERS[name](clip, text)


def attach(conditioning: list[Any], words: WordMap) -> list[Any]:
    """A copy of a CONDITIONING whose entries carry the word map."""
    for cond, extra in conditioning:
        words.check(length_of(cond, extra))
    return [[cond, {**extra, KEY: words}] for cond, extra in conditioning]


def length_of(cond: Any, extra: dict[str, Any]) -> int:
    """Text tokens that the model sees of a conditioning entry: [B, T, C] and what else it appends to that."""
    appended = (extra[key] for key in _APPENDED if extra.get(key) is not None)
    return int(cond.shape[1] + sum(part.shape[1] for part in appended))


def attached(extra: dict[str, Any]) -> WordMap | None:
    """The word map that a conditioning entry's dictionary carries."""
    return extra.get(KEY)


def _clip_words(clip: Any, text: str, encoder: str, keys: tuple[str, ...]) -> WordMap:
    """CLIP text encoders: chunks with their own start and end; several encoders must agree on where each word is."""
    chunks = clip.tokenize(text, return_word_ids=True)
    first, *others = keys
    reader = _Reader(getattr(clip.tokenizer, f"clip_{first}"), chunks[first], text)
    tokens = reader.tokens()
    words = [(t.position, t.token_id) for t in tokens if t.kind == "word"]
    for key in others:
        placed = _place(getattr(clip.tokenizer, f"clip_{key}"), chunks[key])
        if [(p.position, p.token) for p in placed if p.word and not _is_vector(p.token)] != words:
            raise WordMapError(
                "The two text encoders of this model put the same words at different places, most likely because an "
                "embedding in the prompt was made for only one of them: take it out or move it to the end of the prompt."
            )
    length = min(sum(len(chunk) for chunk in chunks[key]) for key in keys)
    breaks = [edge for segment in reader.segments for edge in segment]
    return build(text, reader.plain, encoder, length, [t for t in tokens if t.position < length], breaks)


def _sdxl_words(clip: Any, text: str) -> WordMap:
    """SDXL's tokenizer also serves the refiner, whose text encoder reads the list of CLIP-G only."""
    model = getattr(clip, "cond_stage_model", None)
    if hasattr(model, "clip_g") and not hasattr(model, "clip_l"):
        return _clip_words(clip, text, "clip-g", ("g",))
    return _clip_words(clip, text, "clip-l+g", ("l", "g"))


# One row for each tokenizer class of the host, by its exact name: tokenizers of T5 and of language models are
# subclasses of SD1Tokenizer but lay out their tokens otherwise.
READERS: dict[str, Callable[[Any, str], WordMap]] = {
    "SD1Tokenizer": partial(_clip_words, encoder="clip-l", keys=("l",)),
    "SD2Tokenizer": partial(_clip_words, encoder="clip-h", keys=("h",)),
    "SDXLTokenizer": _sdxl_words,
}


class _Placed(NamedTuple):
    position: int
    token: Any  # an id, or the vector of an embedding
    word: int  # the host's number of the weighted segment or embedding; 0 for start, end and padding
    kind: str


def _place(sub: Any, chunks: list[Any]) -> Iterator[_Placed]:
    """Every token that has a position in the conditioning, in order."""
    offset = 0
    for chunk in chunks:
        # The host drops vectors that do not fit the encoder; what follows moves up and padding fills the chunk.
        kept = [entry for entry in chunk if not _is_vector(entry[0]) or entry[0].shape[-1] == sub.embedding_size]
        kept += [(sub.pad_token, 1.0, 0)] * (len(chunk) - len(kept))
        ended = False
        for index, (token, _, word) in enumerate(kept):
            if word:
                kind = "word"
            elif index == 0:
                kind = "start"
            else:
                # The padding may have the id of the end token (CLIP-L) or of "!" (CLIP-G and CLIP-H), so only the
                # place tells them apart.
                kind, ended = "pad" if ended else "end", True
            yield _Placed(offset + index, token, word, kind)
        offset += len(chunk)


def _is_vector(token: Any) -> bool:
    return hasattr(token, "shape") and len(token.shape) > 0


class _Reader:
    """Goes through a prompt and the host's tokens of it in step."""

    def __init__(self, sub: Any, chunks: list[Any], text: str) -> None:
        self.sub = sub
        self.placed = list(_place(sub, chunks))
        self.queue = [p for p in self.placed if p.word]
        self.pieces: dict[int, str] = {}
        self.plain, self.segments = _plain(text, getattr(sub, "disable_weights", False))

    def tokens(self) -> list[Token]:
        tokens = [Token(p.position, int(p.token), self._piece(p.token), p.kind) for p in self.placed if not p.word]
        for start, end in self.segments:
            # The host cuts a segment in front of every "embedding:" that follows a space.
            cuts = [m.start() for m in re.finditer(rf"(?<=\s){EMBEDDING}", self.plain[start:end])]
            for a, b in pairwise([0, *cuts, end - start]):
                tokens += self._part(start + a, start + b)
        if self.queue:
            raise self._lost()
        return tokens

    def _part(self, start: int, end: int) -> list[Token]:
        named = re.compile(rf"{EMBEDDING}\s*([^\s<\[]*)").match(self.plain, start, end)
        if named is None or self.sub.embedding_directory is None:
            return self._text(start, end)
        # A name ends at a space, "<" or "["; commas at its end belong to the prompt unless a file is really called so.
        vectors = self._vectors()
        full = named.end()
        bare = named.start(1) + len(named[1].strip(","))
        name_end = bare if self._fits(_spans(self.sub, self.plain[bare:end])[0]) else full
        token = [Token(p.position, -1, self.plain[start:name_end], "embedding", start, name_end) for p in vectors]
        return token + self._text(name_end, end)

    def _vectors(self) -> list[_Placed]:
        """Take the vectors of one embedding; there are none when the host did not find its file."""
        word = self.queue[0].word if self.queue else 0
        count = 0
        while count < len(self.queue) and self.queue[count].word == word and _is_vector(self.queue[count].token):
            count += 1
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def _fits(self, ids: list[int]) -> bool:
        """Whether the next tokens are exactly these."""
        return [None if _is_vector(p.token) else p.token for p in self.queue[: len(ids)]] == ids

    def _text(self, start: int, end: int) -> list[Token]:
        """Take the tokens of plain[start:end]."""
        ids, spans = _spans(self.sub, self.plain[start:end])
        if not self._fits(ids):
            raise self._lost()
        taken, self.queue = self.queue[: len(ids)], self.queue[len(ids) :]
        return [
            Token(p.position, int(p.token), self._piece(p.token), "word", start + a, start + b)
            for p, (a, b) in zip(taken, spans, strict=True)
        ]

    def _piece(self, token: int) -> str:
        """The text of a token for people; a part of a character shows as the replacement character."""
        if token not in self.pieces:
            self.pieces[token] = str(self.sub.tokenizer.decode([int(token)])).strip()
        return self.pieces[token]

    def _lost(self) -> WordMapError:
        shown = " ".join(self.plain.split())
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        return WordMapError(f'The tokens of the prompt "{shown}" could not be traced back to its words.')


def _plain(text: str, disable_weights: bool) -> tuple[str, list[Span]]:
    """The prompt without weights syntax, and the spans in it that the host tokenises one by one."""
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    escaped = escape_important(text)
    parsed = [escaped] if disable_weights else [segment for segment, _ in token_weights(escaped, 1.0)]
    plain, segments = "", []
    for segment in map(unescape_important, parsed):
        segments.append((len(plain), len(plain) + len(segment)))
        plain += segment
    return plain, segments


def _spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The ids of a text without start and end, and the characters that each one stands for."""
    tokenizer, cut = sub.tokenizer, slice(sub.tokens_start, -1 if sub.tokenizer_adds_end_token else None)
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, return_offsets_mapping=True)
        return list(encoded["input_ids"][cut]), [(a, b) for a, b in encoded["offset_mapping"][cut]]
    # Older transformers tell no offsets, but the vocabulary of CLIP has one sign for each byte of the lower-case text.
    ids: list[int] = []
    spans: list[Span] = []
    for run in re.finditer(r"\S+", text):
        found = list(tokenizer(run[0])["input_ids"][cut])
        ends = list(accumulate(len(sub.inv_vocab[i].removesuffix("</w>")) for i in found))
        # Some of them straighten curly quotes first.
        for text_read in (run[0], run[0].translate(_STRAIGHT)):
            owners = [i for i, char in enumerate(text_read, run.start()) for _ in char.lower().encode()]
            if ends and ends[-1] == len(owners):
                spans += [(owners[a], owners[b - 1] + 1) for a, b in pairwise([0, *ends])]
                break
        else:
            # Characters were composed or replaced on the way: the words of a run without spaces share its tokens.
            spans += [run.span()] * len(found)
        ids += found
    return ids, spans
