"""Word maps of T5, BERT and mT5: every position must hold the word that the map says.

The tokenizers of T5 and BERT are ComfyUI's own files. The vocabulary of mT5 comes inside its weights, which no test
has, so a small one of the same make is trained here; the reader knows nothing of which it is.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.sd
import comfy.text_encoders.aura_t5
import comfy.text_encoders.flux
import comfy.text_encoders.hydit
import comfy.text_encoders.pixart_t5
import pytest
import safetensors.torch
import torch

from goca_core.capture import conditioning as tokens
from goca_core.capture.tokenizers import bert, t5
from goca_core.words.match import PhraseError
from goca_core.words.word_map import WordMap

from .device import repeated
from .word_checks import VOCABULARY, check, check_wordless, t5_vocabulary


@pytest.fixture(scope="session")
def mt5() -> torch.Tensor:
    return t5_vocabulary()


def clip_of(kind: str, mt5: torch.Tensor, embeddings: Path | None = None) -> Any:
    """A CLIP of ComfyUI that can only tokenise."""
    clip = comfy.sd.CLIP(no_init=True)
    folder = str(embeddings) if embeddings else None
    if kind == "hunyuan":
        clip.tokenizer = comfy.text_encoders.hydit.HyditTokenizer(folder, {"mt5xl.spiece_model": mt5})
    else:
        modules = {
            "pixart": comfy.text_encoders.pixart_t5.PixArtTokenizer,
            "flux": comfy.text_encoders.flux.FluxTokenizer,
        }
        clip.tokenizer = modules[kind](embedding_directory=folder)
    clip.tokenizer_options = {}
    return clip


@pytest.fixture(scope="module", params=["pixart", "flux", "hunyuan"])
def clip(request: pytest.FixtureRequest, mt5: torch.Tensor) -> Any:
    return clip_of(request.param, mt5)


@pytest.fixture(scope="module")
def flux(mt5: torch.Tensor) -> Any:
    return clip_of("flux", mt5)


@pytest.fixture(scope="module")
def hunyuan(mt5: torch.Tensor) -> Any:
    return clip_of("hunyuan", mt5)


def halves(clip: Any, text: str) -> list[tuple[Any, list[Any]]]:
    """Each text encoder that gives tokens, and its tokens, in the order of the conditioning."""
    lists = clip.tokenize(text)
    subs = {"t5xxl": getattr(clip.tokenizer, "t5xxl", None) or getattr(clip.tokenizer, "clip_t5xxl", None)}
    subs |= {key: getattr(clip.tokenizer, key, None) for key in ("hydit_clip", "mt5xl")}
    return [(sub, [e[0] for chunk in lists[key] for e in chunk]) for key, sub in subs.items() if sub is not None]


def check_words(clip: Any, text: str, words: WordMap) -> None:
    check(halves(clip, text), text, words)


def test_t5_without_padding(mt5: torch.Tensor) -> None:
    words = tokens.word_map(clip_of("pixart", mt5), "a (red cat:1.3) on a wooden-table")
    assert (words.plain, words.encoder) == ("a red cat on a wooden-table", "t5")
    # ▁ a ▁red ▁cat ▁on ▁ a ▁wooden - table </s>: the lone ▁ in front of "a" is no part of it.
    assert words.length == 11
    assert words.find("a") == (1, 6)
    assert words.find("red cat") == (2, 3)
    assert words.find("wooden-table") == (7, 9)
    assert words.special == (10,) and words.pad == ()
    assert words.content() == (2, 3, 4, 7, 9)
    assert [p.position for p in words.pieces if p.kind == "other"] == [0, 5]


def test_t5_padded(flux: Any) -> None:
    words = tokens.word_map(flux, "an aeroplane, trees and photorealistic grass")
    assert words.length == 256
    pieces = {p.position: p.text for p in words.pieces}
    assert "".join(pieces[p] for p in words.find("photorealistic")) == "photorealistic"
    assert len(words.find("aeroplane")) == 3
    (end,) = words.special
    assert words.pad == tuple(range(end + 1, 256))
    assert words.rest(["aeroplane"]) == ["trees", "photorealistic grass"]


def test_padding_chosen_by_a_node(flux: Any) -> None:
    """T5TokenizerOptions sets it."""
    chosen = flux.clone() if hasattr(flux, "patcher") else clip_of("flux", torch.zeros(0))
    chosen.set_tokenizer_option("t5xxl_min_length", 40)
    words = tokens.word_map(chosen, "a red cat")
    assert words.length == 40
    long = tokens.word_map(chosen, "red cat " * 40)
    assert long.length == 81 and long.pad == () and len(long.find("cat")) == 40


def test_both_text_encoders_of_hunyuan(hunyuan: Any) -> None:
    text = "a (red cat:1.2) on photorealistic grass"
    words = tokens.word_map(hunyuan, text)
    assert words.length == 77 + 256 and words.encoder == "bert+mt5"
    cat = words.find("cat")
    assert cat[0] == 3 and cat[1] >= 77
    assert words.special == (0, 9, *(p for p in words.special if p >= 77))
    assert len(words.special) == 3
    check_words(hunyuan, text, words)


def test_chinese(hunyuan: Any) -> None:
    text = "一只红色的猫，坐在木桌上"
    words = tokens.word_map(hunyuan, text)
    check_words(hunyuan, text, words)
    cat = words.find("猫")
    assert cat[0] == 6 and cat[1] >= 77
    assert [p for p in words.find("木桌") if p < 77] == [10, 11]


@pytest.mark.parametrize("seed", range(6))
def test_random_prompts_with_weights(clip: Any, seed: int) -> None:
    rng = random.Random(seed)
    shapes = ["{} ", "{}, ", "({}:1.2) ", "(({})) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) ", "  {}\n\n"]
    for _ in range(12):
        text = "".join(rng.choice(shapes).format(rng.choice(VOCABULARY)) for _ in range(rng.randint(1, 40)))
        words = tokens.word_map(clip, text)
        check_words(clip, text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_the_words_are_all_there(clip: Any) -> None:
    for word in VOCABULARY:
        words = tokens.word_map(clip, f"x {word} y")
        assert "".join(w.text for w in words.words[1:-1]) == word
        assert words.find("x") and words.find("y")


def test_prompts_without_words(clip: Any) -> None:
    check_wordless(clip, lambda text, words: check_words(clip, text, words), "(,:1.2)")  # the weight is no word


def test_typed_special_tokens_are_words(clip: Any) -> None:
    for text in ("cat </s> dog", "cat <pad> dog", "cat [SEP] dog"):
        words = tokens.word_map(clip, text)
        check_words(clip, text, words)
        assert words.find("dog")


@pytest.mark.parametrize("kind", ["pixart", "flux"])
def test_embeddings(kind: str, mt5: torch.Tensor, tmp_path: Path) -> None:
    safetensors.torch.save_file({"t5xxl": torch.full((3, 4096), 0.5)}, tmp_path / "three.safetensors")
    clip = clip_of(kind, mt5, tmp_path)
    words = tokens.word_map(clip, "red cat, embedding:three dog, embedding:nope bird")
    vectors = [i for i, token in enumerate(halves(clip, words.text)[0][1]) if torch.is_tensor(token)]
    assert words.find("three") == tuple(vectors) == (3, 4, 5)
    assert words.find("dog") == (6,)
    with pytest.raises(PhraseError):
        words.find("nope")


# -- other versions of the libraries ----------------------------------------------------------------------------------


class Old:
    """SentencePiece before 0.2.2: offsets by another name."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.id_to_piece = processor.id_to_piece

    def encode(self, text: str, out_type: type | str = int, add_bos: bool = False, add_eos: bool = False) -> Any:
        if out_type != "immutable_proto":
            return self._processor.encode(text, add_bos=add_bos, add_eos=add_eos)
        offsets = self._processor.encode(text, return_type="offset_mapping", add_bos=False, add_eos=False)["offsets"]
        return SimpleNamespace(pieces=[SimpleNamespace(begin=a, end=b) for a, b in offsets])


def test_older_sentencepiece(hunyuan: Any) -> None:
    processor = hunyuan.tokenizer.mt5xl.tokenizer.tokenizer
    for text in ("a red cat 🙂, 一只猫", "", "  x\ny"):
        assert t5._sentencepiece(Old(processor), text) == t5._sentencepiece(processor, text)


def test_characters_spelt_in_bytes(hunyuan: Any) -> None:
    """None of these is in the small vocabulary."""
    ids, spans = t5.t5_spans(hunyuan.tokenizer.mt5xl, "🙂 cat")
    assert [span for span in spans if span == (0, 1)] == [(0, 1)] * 4
    assert len(ids) == len(spans)


def test_a_real_vocabulary_of_sentencepiece() -> None:
    """AuraFlow's T5 comes with a file of ComfyUI, so the reader meets a real one."""
    sub = comfy.text_encoders.aura_t5.PT5XlTokenizer()
    text = "A red  cat 🙂,\n一只猫 wooden-table"
    ids, spans = t5.t5_spans(sub, text)
    assert ids == sub.tokenizer(text)["input_ids"][:-1]
    covered = {i for a, b in spans for i in range(a, b)}
    assert {i for i, char in enumerate(text) if not char.isspace()} <= covered


def test_slow_bert_gives_the_same_map(hunyuan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older transformers tell no offsets; signs that BERT does not know share the tokens of their run."""
    sub = hunyuan.tokenizer.hydit_clip
    known = ["a", "red", "Cat", "wooden-table", "naïve", "cafe\u0301", "photorealistic", "一只猫", "“quoted”", "кот"]
    prompts = [" ".join(known), "!!! ,,, a", ""]
    fast = [bert.bert_spans(sub, text) for text in prompts]
    tokenizer = sub.tokenizer
    monkeypatch.setattr(sub, "tokenizer", lambda text: tokenizer(text))
    for text, (ids, spans) in zip(prompts, fast, strict=True):
        slow_ids, slow = bert.bert_spans(sub, text)
        assert slow_ids == ids
        # A combining accent belongs to its letter or to none.
        assert [text[a:b].rstrip("\u0301") for a, b in slow] == [text[a:b].rstrip("\u0301") for a, b in spans]
    assert bert.bert_spans(sub, "x 🙂y z")[1] == [(0, 1), (2, 4), (5, 6)]


# -- through the nodes ------------------------------------------------------------------------------------------------

SMALL_T5 = {"d_ff": 64, "d_kv": 16, "d_model": 64, "num_heads": 4, "num_layers": 1}


def encoder_of(kind: str, mt5: torch.Tensor) -> Any:
    """A text encoder with one narrow layer and random weights."""
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    models = {
        "pixart": (comfy.text_encoders.pixart_t5.PixArtT5XXL, {"t5xxl_model_config": SMALL_T5}),
        "flux": (
            comfy.text_encoders.flux.FluxClipModel,
            {"t5xxl_model_config": SMALL_T5, "clip_l_model_config": small},
        ),
        "hunyuan": (
            comfy.text_encoders.hydit.HyditModel,
            {"mt5xl_model_config": {**SMALL_T5, "vocab_size": 400}, "hydit_clip_model_config": small},
        ),
    }
    model, options = models[kind]
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=type(clip_of(kind, mt5).tokenizer)),
                         tokenizer_data={"mt5xl.spiece_model": mt5}, model_options=options)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for weight in clip.cond_stage_model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return clip


@pytest.mark.parametrize("kind", ["pixart", "flux", "hunyuan"])
def test_encode_prompt_is_comfyuis_encoding(host: Any, pack: ModuleType, kind: str, mt5: torch.Tensor) -> None:
    clip = encoder_of(kind, mt5)
    node = importlib.import_module(f"{pack.__name__}.nodes.words").EncodePrompt
    text = "a (red cat:1.3) on a table"
    expected = repeated(lambda: host.nodes.CLIPTextEncode().encode(clip, text)[0][0][0])
    ((cond, extra),) = node.execute(clip=clip, text=text).result[0]
    ((_, theirs),) = host.nodes.CLIPTextEncode().encode(clip, text)[0]
    assert torch.equal(cond, expected)
    assert set(extra) == {*theirs, "goca_words"}
    words = extra["goca_words"]
    assert words.length == cond.shape[1] + (extra["conditioning_mt5xl"].shape[1] if kind == "hunyuan" else 0)
    assert tokens.attached(extra) is words
    with pytest.raises(ValueError, match="belongs to a conditioning of"):
        tokens.attach([[cond[:, :-1], extra]], words)
