"""A toy text encoder, one token for every four characters of a word, and the word maps that it gives."""

from __future__ import annotations

from goca_core.words.build import Token, build
from goca_core.words.text import split_words
from goca_core.words.word_map import WordMap

LENGTH = 400


def words_of(text: str, embeddings: tuple[tuple[int, int], ...] = (), breaks: tuple[int, ...] = ()) -> WordMap:
    """A word map as an encoder with a start token, short pieces, an end token and padding would give it."""
    tokens = [Token(0, -2, "", "start")]
    spans = [s for s in split_words(text) if not any(a <= s[0] < b for a, b in embeddings)]
    for span in sorted([*spans, *embeddings]):
        if span in embeddings:
            tokens += [Token(len(tokens) + k, -1, "", "embedding", *span) for k in range(3)]
            continue
        for start in range(span[0], span[1], 4):
            end = min(start + 4, span[1])
            tokens.append(Token(len(tokens), len(tokens), text[start:end].lower(), "word", start, end))
    tokens.append(Token(len(tokens), -3, "", "end"))
    tokens += [Token(i, -3, "", "pad") for i in range(len(tokens), LENGTH)]
    return build(text, text, "toy", LENGTH, tokens, breaks)


def parts_of(*parts: str, text: str = "") -> WordMap:
    """A word map of parts between which words end without a space, as where brackets stood; ``text``: as typed."""
    tokens: list[Token] = []
    breaks, plain = [], "".join(parts)
    for part in parts:
        start = breaks[-1] if breaks else 0
        for a, b in split_words(part):
            tokens.append(Token(len(tokens), len(tokens), part[a:b], "word", start + a, start + b))
        breaks.append(start + len(part))
    return build(text or plain, plain, "toy", len(tokens), tokens, breaks)


def texts(word_map: WordMap, positions: tuple[int, ...]) -> str:
    return "".join(word_map.pieces[p].text for p in positions)
