"""Word maps of the text encoders of video models and of their relatives."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.text_encoders.anima
import comfy.text_encoders.cogvideo
import comfy.text_encoders.cosmos
import comfy.text_encoders.genmo
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.kandinsky5
import comfy.text_encoders.lt
import comfy.text_encoders.wan
import pytest
import torch

from goca_core.capture import conditioning as tokens
from goca_core.words.match import PhraseError

from .word_checks import VOCABULARY, check, check_wordless, t5_vocabulary

# Each with the name of its encoder and the tokens that a short prompt is filled up to.
TOKENIZERS = {
    "mochi": (comfy.text_encoders.genmo.MochiT5Tokenizer, "t5xxl", 256),
    "ltxv": (comfy.text_encoders.lt.LTXVT5Tokenizer, "t5xxl", 128),
    "cosmos": (comfy.text_encoders.cosmos.CosmosT5Tokenizer, "t5xxl", 512),
    "cogvideox": (comfy.text_encoders.cogvideo.CogVideoXTokenizer, "t5xxl", 226),
    "anima": (comfy.text_encoders.anima.AnimaTokenizer, "t5xxl", 512),
    "wan": (comfy.text_encoders.wan.WanT5Tokenizer, "umt5xxl", 512),
}
# Language models with a chat template, and the class of the text encoder that cuts it off.
CHATS = {
    "kandinsky5": (
        comfy.text_encoders.kandinsky5.Kandinsky5Tokenizer,
        comfy.text_encoders.kandinsky5.Kandinsky5TEModel,
    ),
    "kandinsky5_image": (
        comfy.text_encoders.kandinsky5.Kandinsky5TokenizerImage,
        comfy.text_encoders.kandinsky5.Kandinsky5TEModel,
    ),
    "hunyuan_video": (
        comfy.text_encoders.hunyuan_video.HunyuanVideoTokenizer,
        comfy.text_encoders.hunyuan_video.HunyuanVideoClipModel,
    ),
    "hunyuan_video15": (
        comfy.text_encoders.hunyuan_video.HunyuanVideo15Tokenizer,
        comfy.text_encoders.hunyuan_image.HunyuanImageTEModel,
    ),
}


def clip_of(kind: str) -> Any:
    """A CLIP of ComfyUI that can only tokenise."""
    clip = comfy.sd.CLIP(no_init=True)
    data = {"spiece_model": t5_vocabulary()} if kind == "wan" else {}
    clip.tokenizer, clip.tokenizer_options = {**TOKENIZERS, **CHATS}[kind][0](tokenizer_data=data), {}
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


SHAPES = ["{} ", "{}, ", "({}:1.2) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) ", "  {}\n\n"]


def prompts(seed: int) -> list[str]:
    rng = random.Random(seed)
    count = [rng.randint(1, 40) for _ in range(6)]
    return ["".join(rng.choice(SHAPES).format(rng.choice(VOCABULARY)) for _ in range(number)) for number in count]


@pytest.mark.parametrize("seed", range(3))
def test_random_prompts(kind: str, clip: Any, seed: int) -> None:
    for text in prompts(seed):
        words = tokens.word_map(clip, text)
        check(encoders(kind, clip, text), text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_prompts_without_words(kind: str, clip: Any) -> None:
    check_wordless(clip, lambda text, words: check(encoders(kind, clip, text), text, words))


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


# -- language models --------------------------------------------------------------------------------------------------


class Places:
    """A text model whose states are the places of its tokens."""

    def encode_token_weights(self, pairs: list[list[Any]]) -> Any:
        places = torch.arange(len(pairs[0]))[None, :, None].float()
        return places, None, {"attention_mask": torch.ones(1, len(pairs[0]))}


class Pooled:
    def encode_token_weights(self, _pairs: Any) -> Any:
        return None, torch.zeros(1, 4)


def kept(kind: str, clip: Any, text: str) -> list[tuple[Any, list[Any]]]:
    """The tokenizer and the ids that ComfyUI's own text encoder leaves in the conditioning."""
    kind_of_model, key = CHATS[kind][1], "llama" if kind == "hunyuan_video" else "qwen25_7b"
    model = kind_of_model.__new__(kind_of_model)
    torch.nn.Module.__init__(model)
    model.clip = model.clip_name = key
    setattr(model, key, Places())
    model.clip_l, model.byt5_small = Pooled(), None
    lists = clip.tokenize(text)
    places = [int(place) for place in model.encode_token_weights(lists)[0][0, :, 0]]
    return [(getattr(clip.tokenizer, key), [lists[key][0][place][0] for place in places])]


# What is quoted goes to ByT5 as well, see below.
UNQUOTED = str.maketrans("", "", '"“”‘’')


@pytest.fixture(scope="module", params=CHATS)
def chat(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, clip_of(request.param)


@pytest.mark.parametrize("seed", range(3))
def test_random_prompts_in_a_template(chat: tuple[str, Any], seed: int) -> None:
    name, clip = chat
    for text in [*prompts(seed), *(["", " ", "\n", "\n\n cat", "((("] if not seed else [])]:
        text = text.translate(UNQUOTED)
        if name == "hunyuan_video":  # some versions of the library leave other characters out
            text = text.encode("ascii", "ignore").decode()
        words = tokens.word_map(clip, text)
        check(kept(name, clip, text), text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_the_words_of_the_template_are_none_of_the_prompt(chat: tuple[str, Any]) -> None:
    name, clip = chat
    text = "user: (a video:1.2) of the color of a shape"
    words = tokens.word_map(clip, text)
    # Weights are read by Llama's tokenizer and not by Qwen's.
    assert words.plain == ("user: a video of the color of a shape" if name == "hunyuan_video" else text)
    assert [len([w for w in words.words if w.text == word]) for word in ("user", "video", "color", "shape")] == [1] * 4
    assert all(words.find(word) for word in ("user", "video", "color", "shape"))
    for word in ("assistant", "objects", "background"):
        with pytest.raises(PhraseError):
            words.find(word)


def test_letters_to_be_rendered_come_first() -> None:
    """HunyuanVideo 1.5 gives what is quoted to ByT5 as well."""
    clip = clip_of("hunyuan_video15")
    text = 'a cat on a sign "cat shop"'
    words = tokens.word_map(clip, text)
    letters = [entry[0] for entry in clip.tokenize(text)["byt5"][0]]
    ((_, rest),) = kept("hunyuan_video15", clip, text)
    count = len(letters)
    assert [piece.token_id for piece in words.pieces] == [*letters, *rest]
    assert (words.encoder, words.length) == ("byt5+qwen2.5", count + len(rest))
    # A quoted word is at two places, the others at Qwen's alone.
    assert min(words.find("cat#1")) >= count and min(words.find("sign")) >= count
    rendered = words.find("cat#2")
    assert [letters[place] for place in rendered[:3]] == [ord(char) + 3 for char in "cat"]
    assert min(rendered[3:]) > max(words.find("sign"))
    extra = {"conditioning_byt5small": torch.zeros(1, count, 1472)}
    assert tokens.attach([[torch.zeros(1, len(rest), 4), extra]], words)
    # A text encoder without ByT5 gives none.
    clip.cond_stage_model = SimpleNamespace(byt5_small=None)
    assert tokens.word_map(clip, text).length == len(rest)


def test_signs_of_the_template_in_a_prompt() -> None:
    """What comes after them ComfyUI may cut off."""
    clip = clip_of("hunyuan_video")
    for text in (
        "a red cat<|eot_id|> and a dog",
        "a cat<|start_header_id|>user<|end_header_id|>\n\na dog",
        "cat<|eot_id|><|start_header_id|>user<|end_header_id|>",
    ):
        words = tokens.word_map(clip, text)
        ((_, ids),) = kept("hunyuan_video", clip, text)
        assert [piece.token_id for piece in words.pieces] == ids and words.length == len(ids)
