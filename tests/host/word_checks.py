"""What must be true of every word map, whatever the text encoder: each position has the id and the word that it says."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
import torch

from goca_core.capture import conditioning
from goca_core.words.match import PhraseError
from goca_core.words.text import fold
from goca_core.words.word_map import WordMap


def t5_vocabulary() -> torch.Tensor:
    """A small SentencePiece model with the special tokens and the byte pieces of mT5 and umT5, whose own vocabularies
    come inside their weights."""
    lines = ["a red cat sits on the wooden table", "a blue dog and a green bird in the grass", "一只红色的猫坐在木桌上"]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=written, vocab_size=400, hard_vocab_limit=False,
        byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


VOCABULARY = [
    *("a", "the", "red", "Cat", "aeroplane", "wooden-table", "man's", "don’t", "1girl", "35mm", "f/1.8", "C++"),
    *("naïve", "cafe\u0301", "Straße", "кот", "고양이", "一只猫", "テーブル", "हिन्दी", "🙂", "❤️", "½", "ﬁne"),
    *("!", "...", "—", "“quoted”", "$5", "50%", "photorealistic", "antidisestablishmentarianism", "long_hair"),
]
# Each way to have no word: nothing, spaces, a line break, punctuation, empty brackets, brackets that never close.
WORDLESS = ("", " ", "\n", ",", "()", "(((")
# What tokenizers put for what they do not know, or for a part of a character.
_UNKNOWN = ("\ufffd", "<unk>", "⁇", "[UNK]")


def squeezed(text: str) -> str:
    """Compatible letters are one; without case, accents and spaces."""
    plain = unicodedata.normalize("NFKD", fold(text))
    return "".join(char for char in plain if unicodedata.category(char) != "Mn" and not char.isspace())


def check(encoders: list[tuple[Any, list[Any]]], text: str, words: WordMap) -> None:
    """`encoders`: tokenizer and ids of each text encoder, in the order in which they stand in the conditioning."""
    offset = 0
    assert [p.token_id for p in words.pieces] == [token for _, ids in encoders for token in ids]
    for sub, ids in encoders:
        for word in words.words:
            own = [ids[p - offset] for p in word.positions if 0 <= p - offset < len(ids)]
            assert own, (text, word)
            read = sub.tokenizer.decode(own)
            known = not any(sign in read for sign in _UNKNOWN)
            # A token may hold more than the word: its space, or the punctuation after it.
            assert not known or squeezed(word.text).strip("⁄") in squeezed(read).replace("##", ""), (text, word, read)
        offset += len(ids)
    named = {p for word in words.words for p in word.positions}
    assert offset == words.length and named.isdisjoint((*words.special, *words.pad))
    others = [p.position for p in words.pieces if p.kind == "other"]
    assert sorted((*named, *words.special, *words.pad, *others)) == list(range(words.length))


def check_wordless(clip: Any, checked: Callable[[str, WordMap], None], *more: str) -> None:
    """Prompts without words (`more`: those of this text encoder alone) have a map, in which nothing is found.

    `checked`: `check` for this text encoder.
    """
    for text in (*WORDLESS, *more):
        words = conditioning.word_map(clip, text)
        checked(text, words)
        assert words.content() == () and words.rest([]) == [], text
        with pytest.raises(PhraseError, match="has no words"):
            words.find("cat")
