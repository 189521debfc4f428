"""Word maps of the text encoders of film models and of their relatives."""

from __future__ import annotations

import random
from typing import Any

import comfy.sd
import comfy.text_encoders.anima
import comfy.text_encoders.cogvideo
import comfy.text_encoders.cosmos
import comfy.text_encoders.genmo
import comfy.text_encoders.lt
import comfy.text_encoders.wan
import pytest
import torch

from goca_core.capture import tokens
from goca_core.words import PhraseError

from .word_checks import VOCABULARY, check, t5_vocabulary

# Each with the name of its encoder and the tokens that a short prompt is filled up to.
TOKENIZERS = {
    "mochi": (comfy.text_encoders.genmo.MochiT5Tokenizer, "t5xxl", 256),
    "ltxv": (comfy.text_encoders.lt.LTXVT5Tokenizer, "t5xxl", 128),
    "cosmos": (comfy.text_encoders.cosmos.CosmosT5Tokenizer, "t5xxl", 512),
    "cogvideox": (comfy.text_encoders.cogvideo.CogVideoXTokenizer, "t5xxl", 226),
    "anima": (comfy.text_encoders.anima.AnimaTokenizer, "t5xxl", 512),
    "wan": (comfy.text_encoders.wan.WanT5Tokenizer, "umt5xxl", 512),
}


def clip_of(kind: str) -> Any:
    """A CLIP of the host that can only tokenise."""
    clip = comfy.sd.CLIP(no_init=True)
    data = {"spiece_model": t5_vocabulary()} if kind == "wan" else {}
    clip.tokenizer, clip.tokenizer_options = TOKENIZERS[kind][0](tokenizer_data=data), {}
    return clip


@pytest.fixture(scope="module", params=TOKENIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clip(kind: str) -> Any:
    return clip_of(kind)


def encoders(kind: str, clip: Any, text: str) -> list[tuple[Any, list[Any]]]:
    _, key, length = TOKENIZERS[kind]
    ids = [entry[0] for chunk in clip.tokenize(text)[key] for entry in chunk]
    if kind == "anima":  # the network fills up, not the tokenizer
        ids += [0] * (length - len(ids))
    sub = getattr(clip.tokenizer, key if hasattr(clip.tokenizer, key) else f"clip_{key}")
    return [(sub, ids)]


def test_words_of_a_short_prompt(kind: str, clip: Any) -> None:
    text = "a (red cat:1.3) on a wooden-table"
    words = tokens.word_map(clip, text)
    assert words.plain == "a red cat on a wooden-table" and words.length == TOKENIZERS[kind][2]
    assert len(words.special) == 1 and words.pad == tuple(range(words.special[0] + 1, words.length))
    check(encoders(kind, clip, text), text, words)
    pieces = {piece.position: piece.text for piece in words.pieces}
    assert "".join(pieces[place] for place in words.find("red cat")) == "redcat"


@pytest.mark.parametrize("seed", range(3))
def test_random_prompts(kind: str, clip: Any, seed: int) -> None:
    rng = random.Random(seed)
    shapes = ["{} ", "{}, ", "({}:1.2) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) ", "  {}\n\n"]
    for _ in range(6):
        text = "".join(rng.choice(shapes).format(rng.choice(VOCABULARY)) for _ in range(rng.randint(1, 40)))
        words = tokens.word_map(clip, text)
        check(encoders(kind, clip, text), text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


@pytest.mark.parametrize("text", ["", " ", "\n", ",", "((("])
def test_prompts_without_words(kind: str, clip: Any, text: str) -> None:
    words = tokens.word_map(clip, text)
    check(encoders(kind, clip, text), text, words)
    with pytest.raises(PhraseError, match="has no words"):
        words.find("cat")


def test_a_prompt_longer_than_the_padding() -> None:
    for kind in ("ltxv", "anima"):
        words = tokens.word_map(clip_of(kind), "red cat " * 300)
        assert words.length == 601 and words.pad == () and len(words.find("cat")) == 300


def test_the_map_fits_what_anima_is_given() -> None:
    """Its conditioning has the tokens of the language model, and those of T5 beside it."""
    words = tokens.word_map(clip_of("anima"), "a red cat")
    extra = {"t5xxl_ids": torch.zeros(5, dtype=torch.int)}
    ((_, carried),) = tokens.attach([[torch.zeros(1, 3, 1024), extra]], words)
    assert tokens.attached(carried) is words
