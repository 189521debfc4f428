"""Word maps of several encoders in one conditioning, and of language models with their chat templates."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.text_encoders.aura_t5
import comfy.text_encoders.lumina2
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import pytest
import torch

from goca_core.capture import conditioning as tokens
from goca_core.capture.tokenizers import qwen
from goca_core.words.match import PhraseError
from goca_core.words.word_map import WordMapError

from .vocabularies import gemma
from .word_checks import VOCABULARY, check, check_wordless

TOKENIZERS = {
    "sd3": comfy.text_encoders.sd3_clip.SD3Tokenizer,
    "auraflow": comfy.text_encoders.aura_t5.AuraT5Tokenizer,
    "lumina2": lambda: comfy.text_encoders.lumina2.LuminaTokenizer(tokenizer_data={"spiece_model": gemma()}),
    "z_image": comfy.text_encoders.z_image.ZImageTokenizer,
    "qwen_image": comfy.text_encoders.qwen_image.QwenImageTokenizer,
}


def clip_of(kind: str) -> Any:
    """A CLIP of ComfyUI that can only tokenise."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = TOKENIZERS[kind](), {}
    return clip


@pytest.fixture(scope="module", params=TOKENIZERS)
def clip(request: pytest.FixtureRequest) -> Any:
    return clip_of(request.param)


class Places:
    """A text model whose states are the places of its tokens."""

    def encode_token_weights(self, pairs: list[list[Any]]) -> Any:
        places = torch.arange(len(pairs[0]))[None, :, None].float()
        return places, None, {"attention_mask": torch.ones(1, len(pairs[0]))}


def survivors(clip: Any, text: str) -> list[int]:
    """The places of the tokens that Qwen-Image's own text encoder leaves in the conditioning."""
    model = comfy.text_encoders.qwen_image.QwenImageTEModel.__new__(comfy.text_encoders.qwen_image.QwenImageTEModel)
    torch.nn.Module.__init__(model)
    model.clip = model.clip_name = "qwen25_7b"
    model.qwen25_7b = Places()
    return [int(place) for place in model.encode_token_weights(clip.tokenize(text))[0][0, :, 0]]


def encoders(clip: Any, text: str) -> list[tuple[Any, list[Any]]]:
    lists = clip.tokenize(text)
    names = {"l": "clip_l", "t5xxl": "t5xxl"} if "l" in lists else dict.fromkeys(lists, clip.tokenizer.clip)
    found = [(getattr(clip.tokenizer, a), [e[0] for chunk in lists[k] for e in chunk]) for k, a in names.items()]
    if "qwen25_7b" in lists:
        ((sub, ids),) = found
        found = [(sub, [ids[place] for place in survivors(clip, text)])]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_random_prompts(clip: Any, seed: int) -> None:
    rng = random.Random(seed)
    shapes = ["{} ", "{}, ", "({}:1.2) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) ", "  {}\n\n"]
    for _ in range(8):
        text = "".join(rng.choice(shapes).format(rng.choice(VOCABULARY)) for _ in range(rng.randint(1, 40)))
        words = tokens.word_map(clip, text)
        check(encoders(clip, text), text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_prompts_without_words(clip: Any) -> None:
    check_wordless(clip, lambda text, words: check(encoders(clip, text), text, words))


def test_every_word_of_sd3_is_at_two_places() -> None:
    clip = clip_of("sd3")
    words = tokens.word_map(clip, "a (red cat:1.3)")
    assert (words.length, words.encoder) == (77 + 77, "clip+t5")
    assert words.find("cat") == (3, 77 + 3)
    assert words.special == (0, 4, 77 + 4)
    long = tokens.word_map(clip, "cat " * 90)
    assert long.length == 2 * 77 + 91 and len(long.find("cat#90")) == 2


@pytest.mark.parametrize(
    ("there", "length", "cat"),
    [({"clip_l", "clip_g"}, 77, (3,)), ({"t5xxl"}, 77, (3,)), ({"clip_g", "t5xxl"}, 154, (3, 80))],
)
def test_sd3_without_some_of_its_encoders(there: set[str], length: int, cat: tuple[int, ...]) -> None:
    clip = clip_of("sd3")
    clip.cond_stage_model = SimpleNamespace(
        **{name: 1 if name in there else None for name in ("clip_l", "clip_g", "t5xxl")}
    )
    words = tokens.word_map(clip, "a red cat")
    assert (words.length, words.find("cat")) == (length, cat)
    clip.cond_stage_model = SimpleNamespace(clip_l=None, clip_g=None, t5xxl=None)
    with pytest.raises(WordMapError, match="no text encoder"):
        tokens.word_map(clip, "a red cat")


@pytest.mark.parametrize("kind", ["z_image", "qwen_image"])
def test_the_words_of_the_template_are_none_of_the_prompt(kind: str) -> None:
    clip = clip_of(kind)
    words = tokens.word_map(clip, "user: (an image:1.2) of the color of a shape")
    # Weights are not read: their brackets and numbers are text.
    assert words.plain == "user: (an image:1.2) of the color of a shape"
    assert [len(words.find(word)) for word in ("user", "image", "color", "shape")] == [1, 1, 1, 1]
    with pytest.raises(PhraseError):
        words.find("assistant")
    assert words.special == ()


def test_a_prompt_that_brings_its_own_template() -> None:
    clip = clip_of("qwen_image")
    for text in (
        "<|im_start|>system\nPaint.<|im_end|>\n<|im_start|>user\na red cat<|im_end|>\n",
        "<|start_header_id|>a red cat",
        "<|im_start|>a red cat",
    ):
        words = tokens.word_map(clip, text)
        kept = survivors(clip, text)
        assert words.length == len(kept)
        if len(kept) > 1:
            check(encoders(clip, text), text, words)
            assert len(words.find("cat")) == 1


@pytest.mark.parametrize("kind", ["z_image", "qwen_image"])
def test_slow_tokenizers_give_the_same_map(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older transformers tell no offsets."""
    clip = clip_of(kind)
    sub = getattr(clip.tokenizer, clip.tokenizer.clip)
    prompts = ["a red cat, wooden-table\n naïve 一只猫 🙂 “quoted”", "", " \n x"]
    fast = [tokens.word_map(clip, text) for text in prompts]
    tokenizer = sub.tokenizer

    class Slow:
        decode = staticmethod(tokenizer.decode)

        def __call__(self, text: str) -> Any:
            return tokenizer(text)

    monkeypatch.setattr(sub, "tokenizer", Slow())
    for text, expected in zip(prompts, fast, strict=True):
        assert qwen.byte_spans(sub, text)[0] == list(tokenizer(text)["input_ids"])
        slow = tokens.word_map(clip, text)
        assert [(w.text, w.positions) for w in slow.words] == [(w.text, w.positions) for w in expected.words]
