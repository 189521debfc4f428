"""Word maps of the language models of newer image models: every position must hold the word that the map says.

Which tokens of a template are left in the conditioning is asked of ComfyUI's own text encoders. Vocabularies that come
inside weights are small ones of the same make; the readers know nothing of which they are.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sdxl_clip
import pytest
import torch

from goca_core.capture import conditioning as tokens
from goca_core.words.match import PhraseError
from goca_core.words.word_map import WordMapError

from .older import part
from .vocabularies import gemma, harmony, mistral
from .word_checks import VOCABULARY, check, check_wordless


def newbie() -> Any:
    return part("newbie.NewBieTokenizer")(tokenizer_data={"gemma_spiece_model": gemma(), "jina_spiece_model": gemma()})


# By name, because an older ComfyUI does not have them all.
TOKENIZERS: dict[str, Any] = {
    "stable_cascade": comfy.sdxl_clip.StableCascadeTokenizer,
    "newbie": newbie,
    "flux2": lambda: mistral(part("flux.Flux2Tokenizer")),
    "klein": "flux.KleinTokenizer",
    "klein_8b": "flux.KleinTokenizer8B",
    "ernie": lambda: mistral(part("ernie.ErnieTokenizer")),
    "omnigen2": "omnigen2.Omnigen2Tokenizer",
    "ovis": "ovis.OvisTokenizer",
    "krea2": "krea2.Krea2Tokenizer",
    "mage_flow": "mage_flow.MageFlowTokenizer",
    "joyimage": "joyimage.JoyImageTokenizer",
    "boogu": "boogu.BooguTokenizer",
    "ideogram4": "ideogram4.Ideogram4Tokenizer",
    "ideogram4_vl": "ideogram4.Ideogram4Qwen3VLTokenizer",
    "longcat": "longcat_image.LongCatImageTokenizer",
    "lens": lambda: part("gpt_oss.LensTokenizer")(tokenizer_data={"tokenizer_json": harmony()}),
    "hunyuan_image": "hunyuan_image.HunyuanImageTokenizer",
    "hidream": "hidream.HiDreamTokenizer",
    "hidream_o1": "hidream_o1.HiDreamO1Tokenizer",
    "pixeldit": lambda: part("pixeldit.PixelDiTGemma2Tokenizer")(tokenizer_data={"spiece_model": gemma()}),
}
# Text encoders that leave out a part of the template.
CUTTING = {
    "ovis": "ovis.OvisTEModel",
    "krea2": "krea2.Krea2TEModel",
    "mage_flow": "mage_flow.MageFlowTEModel",
    "joyimage": "joyimage.JoyImageTEModel",
    "longcat": "longcat_image.LongCatImageTEModel",
    "hunyuan_image": "hunyuan_image.HunyuanImageTEModel",
    "pixeldit": "pixeldit.PixelDiTGemma2TE",
}
OWN_TEMPLATE = ("krea2", "mage_flow", "boogu", "ideogram4", "ideogram4_vl", "longcat", "hunyuan_image")


def clip_of(kind: str) -> Any:
    """A CLIP of ComfyUI that can only tokenise."""
    clip, make = comfy.sd.CLIP(no_init=True), TOKENIZERS[kind]
    clip.tokenizer, clip.tokenizer_options = (part(make) if isinstance(make, str) else make)(), {}
    return clip


@pytest.fixture(scope="module", params=TOKENIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


_clips: dict[str, Any] = {}


@pytest.fixture
def clip(kind: str) -> Any:
    if kind not in _clips:
        _clips[kind] = clip_of(kind)
    return _clips[kind]


class Places:
    """A text model whose states are the places of its tokens."""

    def __init__(self, kind: str = "") -> None:
        self._kind = kind

    def encode_token_weights(self, pairs: list[list[Any]]) -> Any:
        places = torch.arange(len(pairs[0]))[None, :, None].float()
        if self._kind == "krea2":  # several layers of it
            places = places[:, None]
        if self._kind == "ovis":
            return places, None
        return places, None, {"attention_mask": torch.ones(1, len(pairs[0]))}


def survivors(kind: str, clip: Any, lists: dict[str, Any]) -> list[int]:
    """The places of the tokens that ComfyUI's own text encoder leaves in the conditioning."""
    name = clip.tokenizer.clip
    encoder = part(CUTTING[kind])
    model = encoder.__new__(encoder)
    torch.nn.Module.__init__(model)
    model.clip = model.clip_name = name
    setattr(model, name, Places(kind))
    model.byt5_small = Places()
    return [int(place) for place in model.encode_token_weights(lists)[0][0, :, 0]]


def encoders(kind: str, clip: Any, text: str) -> list[tuple[Any, list[Any]]]:
    """Each text encoder that gives tokens, and those that are left of its, in the order of the conditioning."""
    lists = clip.tokenize(text)
    ids = {key: [entry[0] for chunk in chunks for entry in chunk] for key, chunks in lists.items()}
    tokenizer = clip.tokenizer
    if kind == "hidream":
        return [(tokenizer.t5xxl, ids["t5xxl"]), (tokenizer.llama, ids["llama"]), (tokenizer.llama, ids["llama"])]
    if kind == "newbie":
        return [(tokenizer.gemma, ids["gemma"])]
    (key, *others), sub = ids, getattr(tokenizer, tokenizer.clip)
    own = ids[key]
    if kind == "lens":
        own = own[part("gpt_oss.LENS_TXT_OFFSET") :]
    if kind in CUTTING:
        own = [own[place] for place in survivors(kind, clip, lists)]
    return [(sub, own), *((tokenizer.byt5, ids[other]) for other in others)]


@pytest.mark.parametrize("seed", range(4))
def test_random_prompts(kind: str, clip: Any, seed: int) -> None:
    rng = random.Random(seed)
    shapes = ["{} ", "{}, ", "({}:1.2) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) ", "  {}\n\n"]
    # T5's tokens, GPT-OSS's and PixelDiT's are cut off, so a prompt must be short for its words to be everywhere; what is quoted goes
    # to a second text encoder, of which there is another test; the library's newer versions drop what is not ASCII from
    # Llama's tokens.
    most = {"hidream": 12, "lens": 8, "pixeldit": 12}.get(kind, 40)
    vocabulary = [word for word in VOCABULARY if kind != "hunyuan_image" or word != "“quoted”"]
    vocabulary = [word for word in vocabulary if kind != "hidream" or word.isascii()]
    for _ in range(6):
        text = "".join(rng.choice(shapes).format(rng.choice(vocabulary)) for _ in range(rng.randint(1, most)))
        words = tokens.word_map(clip, text)
        check(encoders(kind, clip, text), text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_prompts_without_words(kind: str, clip: Any) -> None:
    check_wordless(clip, lambda text, words: check(encoders(kind, clip, text), text, words))


def test_words_are_found(kind: str, clip: Any) -> None:
    words = tokens.word_map(clip, "user: an image of a photorealistic red cat, the shape of its background")
    for word in ("user", "image", "red", "shape"):
        found = words.find(word)
        assert len(found) >= (3 if kind == "hidream" else 1)
        # Newer versions of the library drop Llama's spaces, so neighbours may share its tokens.
        assert found[0] != words.find("cat")[0]
    with pytest.raises(PhraseError):
        words.find("assistant")


@pytest.mark.parametrize("kind", OWN_TEMPLATE)
def test_a_prompt_that_brings_its_own_template(kind: str) -> None:
    clip = clip_of(kind)
    text = "<|im_start|>system\nPaint.<|im_end|>\n<|im_start|>user\na red cat<|im_end|>\n"
    words = tokens.word_map(clip, text)
    check(encoders(kind, clip, text), text, words)
    assert words.find("cat")


def test_weights_are_read_by_omnigen2_alone() -> None:
    assert tokens.word_map(clip_of("omnigen2"), "a (red cat:1.3)").plain == "a red cat"
    assert tokens.word_map(clip_of("krea2"), "a (red cat:1.3)").plain == "a (red cat:1.3)"


# -- several encoders -------------------------------------------------------------------------------------------------


def test_every_word_of_hidream_is_at_three_places() -> None:
    clip = clip_of("hidream")
    words = tokens.word_map(clip, "a (red cat:1.3)")
    assert (words.length, words.encoder) == (3 * 128, "t5+llama")
    t5, once, again = words.find("cat")
    assert (t5, again - once) == (3, 128)
    llama = clip.tokenize("a (red cat:1.3)")["llama"][0]
    assert "cat" in clip.tokenizer.llama.tokenizer.decode([llama[once - 128][0]])
    assert set(words.special) == {4, 128, 2 * 128}
    long = tokens.word_map(clip, "cat " * 140)
    llama = len(clip.tokenize("cat " * 140)["llama"][0])
    assert long.length == 128 + 2 * llama
    assert long.find("cat#1")[0] == 0 and all(position >= 128 for position in long.find("cat#140"))


@pytest.mark.parametrize(("there", "length", "places"), [({"t5xxl"}, 130, 1), ({"llama"}, 3 * 128, 2), (set(), 130, 0)])
def test_hidream_without_some_of_its_encoders(there: set[str], length: int, places: int) -> None:
    """What ComfyUI's model makes of the missing ones is asked of it."""
    clip = clip_of("hidream")
    model = part("hidream.HiDreamTEModel")(False, False, False, False)
    states = {"t5xxl": torch.zeros(1, 128, 4096), "llama": torch.zeros(1, 33, 128, 4096)}
    for name in there:
        setattr(model, name, SimpleNamespace(encode_token_weights=lambda _pairs, name=name: (states[name], None)))
    clip.cond_stage_model = model
    cond, _, extra = model.encode_token_weights(clip.tokenize("a red cat"))
    words = tokens.word_map(clip, "a red cat")
    assert words.length == length == tokens.length_of(cond, extra)
    if not places:
        with pytest.raises(PhraseError):
            words.find("cat")
    else:
        assert len(words.find("cat")) == places
        assert all(position >= 128 for position in words.find("cat")) is ("t5xxl" not in there)


def test_the_letters_of_hunyuan_image() -> None:
    clip = clip_of("hunyuan_image")
    text = 'a sign \\(wood\\) with "HÉLLO dear" and ‘猫 x’, not (far:1.2)'
    words = tokens.word_map(clip, text)
    (qwen, left), (byt5, letters) = encoders("hunyuan_image", clip, text)
    assert words.length == len(left) + len(letters)
    assert [piece.token_id for piece in words.pieces] == left + letters
    for word, spelt in (("HÉLLO", "HÉLLO"), ("dear", "dear"), ("猫", "猫"), ("sign", "")):
        own = words.find(word)
        assert qwen.tokenizer.decode([left[p] for p in own if p < len(left)]).strip(' "‘') == word
        assert byt5.tokenizer.decode([letters[p - len(left)] for p in own if p >= len(left)]) == spelt
    # Weights inside the quotes would be read by ComfyUI: then no letter is known.
    weighted = tokens.word_map(clip, 'a "(red cat:1.3)"')
    plain = len(encoders("hunyuan_image", clip, 'a "(red cat:1.3)"')[0][1])
    assert all(position < plain for position in weighted.find("cat"))
    # The text encoder may have been loaded without it.
    clip.cond_stage_model = SimpleNamespace(byt5_small=None)
    assert tokens.word_map(clip, text).length == len(left)


def test_quoted_letters_of_longcat() -> None:
    clip = clip_of("longcat")
    words = tokens.word_map(clip, "a 'red' cat")
    assert words.length == 512 and len(words.find("red")) == 3
    assert len(tokens.word_map(clip, "a red cat").find("red")) == 1
    long = tokens.word_map(clip, "cat " * 600)
    assert long.length == 512 and long.pad == ()
    # ComfyUI mixes up two words with apostrophes; then nothing is said rather than something wrong.
    with pytest.raises(WordMapError, match="could not be traced back"):
        tokens.word_map(clip, "a man's cat and a dog's bone")
