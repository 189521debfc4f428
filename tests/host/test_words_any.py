"""Prompts as people write them, with the tokenizers of ComfyUI: at default settings each has masks and heat maps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.z_image
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goca_core.capture import conditioning
from goca_core.pipeline import MaskRequest, resolve_request
from goca_core.words.match import find_occurrences
from goca_core.words.text import fold_words
from goca_core.words.word_map import WordMap

from .older import need
from .test_words import clip_of
from .vocabularies import gemma

_maps: dict[str, Any] = {}


_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "qwen": comfy.text_encoders.z_image.ZImageTokenizer,
    "t5": comfy.text_encoders.flux.FluxTokenizer,
    "gemma": lambda: comfy.text_encoders.lumina2.LuminaTokenizer(tokenizer_data={"spiece_model": gemma()}),
}


def words_of(kind: str, text: str) -> WordMap:
    if kind not in _maps:
        clip = clip_of("clip-l+g") if kind == "clip" else comfy.sd.CLIP(no_init=True)
        if kind != "clip":
            clip.tokenizer, clip.tokenizer_options = _TOKENIZERS[kind](), {}
        _maps[kind] = clip
    return conditioning.word_map(_maps[kind], text)


def background(text: str, phrase: str, kind: str = "clip") -> list[str]:
    """The automatic background of a prompt; its tokens are those that its phrases find, and none of the object's."""
    words = words_of(kind, text)
    objects, rest = resolve_request(MaskRequest(phrase), words)
    for found in rest:
        assert set(found.tokens).isdisjoint(objects[0].tokens)
        assert words.find(found.parts[0]) == found.tokens
    return [found.label for found in rest]


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("Masterpiece, a red circle, masterpiece", "red circle", ["Masterpiece"]),
        ("wooden-table, wooden table, a cat", "cat", ["wooden-table"]),
        ("man's hat, man’s hat, a cat", "cat", ["man's hat"]),
        ("café, cafe\u0301, a cat", "cat", ["café"]),
        ("a cat(black), a dog", "dog", ["cat black"]),
        ("a cat(black)", "cat", []),
        ("Image(s) of a cat", "cat", ["Image s"]),
        ("un(happy:1.2), a cat", "cat", ["un happy"]),
        ("((stars))night, a cat", "cat", ["stars night"]),
        ("(a red circle:1.2)(blue sky:0.8)", "red circle", ["blue sky"]),
        ("(a red circle:1.2)(blue sky:0.8)", "blue sky", ["red circle"]),
    ],
)
def test_the_automatic_background(text: str, phrase: str, expected: list[str]) -> None:
    assert background(text, phrase) == expected


def test_phrases_of_characters_find_their_tokens() -> None:
    """Qwen has one token for several of them."""
    words = words_of("qwen", "一只红色的猫在草地上")
    labels = [phrase.label for phrase in words.each()]
    assert len(labels) < len(words.words) and "".join(labels) == words.plain
    for phrase in ("红色的猫", "红色", "猫", "草地", "草"):
        assert "".join(words.pieces[p].text for p in words.find(phrase)).find(phrase) >= 0
    assert background("一只猫，一只狗", "猫", "qwen") == ["一只狗"]


@pytest.mark.parametrize("kind", ["clip", "qwen"])
def test_invisible_characters(kind: str) -> None:
    for text in ("a red\ufe0f \u200dcir\u00adcle, a cat", "a red\u200bcircle\ufe0f, \ufeffcat"):
        words = words_of(kind, text)
        assert background(text, "cat", kind) and len(words.find("red circle")) >= 2
        assert len(words.rest(["cat"])) == 1


THINGS = (
    *("cat", "Cat", "a red circle", "CIRCLE", "masterpiece", "Masterpiece", "wooden table", "wooden-table", "blue sky"),
    *("man's hat", "man’s hat", "café", "cafe\u0301", "the", "of", "35mm", "f/1.8", "room #2", "auto", "cat#2"),
    *(
        "红色的猫",
        "猫",
        "テーブル",
        "고양이",
        "สวัสดี",
        "🙂",
        "🙂🙃",
        "👩‍👩‍👧",
        "❤️",
        "™",
        "ca\u00adt",
        "re\ufe0fd\u200d",
        "\u200d",
        "\u200b",
    ),
)
SHAPES = ("{}", "{}", "({})", "({}:1.2)", "(({}))", "[{}]", "{}(s)", "un({}:0.8)", "\\({}\\)", "“{}”", "{}:")
JOINTS = (" ", ", ", "", "\n", " and ", " on a ", "-", " - ", ". ", " BREAK ", ",", " | ")
ANY_PROMPT = st.lists(st.tuples(*map(st.sampled_from, (SHAPES, THINGS, JOINTS))), min_size=1, max_size=8).map(
    lambda parts: "".join(shape.format(thing) + joint for shape, thing, joint in parts)
)
many = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", ["clip", "t5", "qwen", "gemma"])
@many
@given(text=ANY_PROMPT, data=st.data())
def test_each_word_of_any_prompt_is_found_beside_an_automatic_background(
    kind: str, text: str, data: st.DataObject
) -> None:
    words = words_of(kind, text)
    named = [i for i, word in enumerate(words.words) if word.keys]
    if not named:
        return
    chosen = data.draw(st.sampled_from(named))
    word = words.words[chosen]
    assert (chosen,) in find_occurrences(fold_words(word.text), words.words)
    objects, rest = resolve_request(MaskRequest(word.text.replace(",", "\\,")), words)
    assert set(word.positions) <= set(objects[0].tokens)
    maps = words.each()
    assert len({found.label for found in maps}) == len({found.tokens for found in maps}) == len(maps)
    assert {token for found in maps for token in found.tokens} == set(words.content())
    if any(other.text == "auto" for other in words.words):
        return  # it is then the word that is the background
    tokens = [found.tokens for found in rest]
    assert len(set(tokens)) == len(tokens) and all(tokens)
    # Every chunk is either in the background, or shares a token with the object.
    either = {*objects[0].tokens, *(token for own in tokens for token in own)}
    for chunk in words.chunks():
        own = {token for i in chunk for token in words.words[i].positions}
        assert own <= either or not own.isdisjoint(objects[0].tokens)
        assert own.isdisjoint(objects[0].tokens) == any(own <= set(found) for found in tokens)


# -- embeddings -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("embeddings")
    safetensors.torch.save_file({"emb_params": torch.full((3, 2560), 0.5)}, folder / "three.safetensors")
    safetensors.torch.save_file({"qwen3_4b": torch.full((1, 2560), 0.5)}, folder / "one.safetensors")
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = comfy.text_encoders.z_image.ZImageTokenizer(embedding_directory=str(folder))
    clip.tokenizer_options = {}
    return clip


@pytest.mark.parametrize(
    "text",
    [
        "a cat embedding:three on grass", "embedding:three a  cat\non grass", "a cat,\nembedding:three", "embedding:one, a cat",
        "a cat embedding:three,", "a embedding:three,, the  cat", "cat, embedding:three, embedding:one [x], grass",
        "embedding:missing a cat", "embedding:three <b> cat",
    ],
)  # fmt: skip
def test_embeddings_in_a_language_model(with_embeddings: Any, text: str) -> None:
    """ComfyUI searches for their names in the filled-in template, and changes the spaces after them."""
    words = conditioning.word_map(with_embeddings, text)
    ids = [entry[0] for entry in with_embeddings.tokenize(text)["qwen3_4b"][0]]
    assert len(ids) == words.length
    sub = with_embeddings.tokenizer.qwen3_4b.tokenizer
    for word in words.words:
        own = [ids[position] for position in word.positions]
        if word.text.startswith("embedding:"):
            assert not any(isinstance(token, int) for token in own)
            assert len(own) == (3 if word.text.endswith("three") else 1)
        else:
            assert word.text in sub.decode(own)
    assert len(words.find("cat")) == 1
    vectors = sum(not isinstance(token, int) for token in ids)
    need(vectors > 0 or "missing" in text, "end of an embedding's name at the template's signs")
    assert sum(len(words.find(name)) for name in ("three", "one") if f"embedding:{name}" in text) == vectors


def test_a_thousand_words_take_no_time() -> None:
    """Measured in the time of this process alone. It took several seconds, because each part of the prompt was looked for
    in all of it."""
    for text in (", ".join(f"cat{i}" for i in range(1000)), "a cat, " * 1000):
        words = words_of("qwen", text)
        start = time.process_time()
        assert words.rest_phrases(["cat1" if "cat1" in text else "cat#1"])
        assert time.process_time() - start < 0.7
