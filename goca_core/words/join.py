"""Several word maps as one: prompts whose tokens are side by side in a conditioning, or at the same positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .text import fold
from .word import Piece, Word
from .word_map import WordMap


def join(parts: Sequence[tuple[int, WordMap]], length: int) -> WordMap:
    r"""One word map for a conditioning of `length` tokens.

    parts: word maps, each with the position of its first token. They may overlap, as those of two text encoders do that read
    different texts. Each prompt is a line of the text of the result.

    >>> from goca_core.words.build import Token, build
    >>> cat, dog = (build(word, word, "toy", 1, [Token(0, 7, word, "word", 0, 3)]) for word in ("cat", "dog"))
    >>> both = join([(0, cat), (1, dog)], 2)
    >>> both.plain, both.find("dog")
    ('cat\ndog', (1,))
    """
    words: list[Word] = []
    pieces: dict[int, list[Piece]] = {}
    special: set[int] = set()
    seen: dict[str, int] = {}
    plain = ""
    for offset, part in parts:
        # A prompt without words is padding, which nobody typed.
        line = len(plain) + (1 if plain and part.words else 0)
        for piece in part.pieces:
            word = None if piece.word is None else piece.word + len(words)
            moved = replace(piece, position=piece.position + offset, word=word)
            pieces.setdefault(moved.position, []).append(moved)
        for one in part.words:
            key = fold(one.text)
            seen[key] = seen.get(key, 0) + 1
            positions = tuple(position + offset for position in one.positions)
            words.append(
                replace(one, start=one.start + line, end=one.end + line, positions=positions, occurrence=seen[key])
            )
        special.update(position + offset for position in part.special)
        if part.words:
            plain = f"{plain}\n{part.plain}" if plain else part.plain
    named = {position for word in words for position in word.positions}
    text = "\n".join(part.text for _, part in parts if part.words)
    encoder = "+".join(dict.fromkeys(part.encoder for _, part in parts))
    padded = [place for place, own in pieces.items() if all(piece.kind == "pad" for piece in own)]
    return WordMap(
        text,
        plain,
        encoder,
        length,
        tuple(words),
        tuple(piece for place in sorted(pieces) for piece in pieces[place]),
        tuple(sorted(special - named)),
        tuple(sorted(padded)),
    )
