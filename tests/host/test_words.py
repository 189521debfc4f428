"""Word maps of ComfyUI's own tokenizers: every position must hold the word that the map says."""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.ace
import comfy.text_encoders.sd2_clip
import pytest
import safetensors.torch
import torch

from goca_core.capture import conditioning as tokens
from goca_core.words.match import PhraseError
from goca_core.words.text import fold
from goca_core.words.word_map import WordMap, WordMapError

from .older import need
from .word_checks import check_wordless

TOKENIZERS = {
    "clip-l": comfy.sd1_clip.SD1Tokenizer,
    "clip-h": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "clip-l+g": comfy.sdxl_clip.SDXLTokenizer,
    "clip-g": comfy.sdxl_clip.SDXLTokenizer,
}
VOCABULARY = [
    *(
        "a",
        "the",
        "red",
        "Cat",
        "aeroplane",
        "wooden-table",
        "man's",
        "don’t",
        "1girl",
        "35mm",
        "f/1.8",
        "C++",
        "long_hair",
    ),
    *(
        "naïve",
        "cafe\u0301",
        "Straße",
        "ΟΔΟΣ",
        "İstanbul",
        "кот",
        "고양이",
        "一只猫",
        "テーブル",
        "สวัสดี",
        "हिन्दी",
        "🙂",
        "👩‍👩‍👧",
        "🇯🇵",
        "❤️",
    ),
    *("!", "...", "—", "“quoted”", "$5", "50%", "photorealistic", "antidisestablishmentarianism"),
]


def clip_of(encoder: str, embeddings: Path | None = None) -> Any:
    """A CLIP of ComfyUI that can only tokenise."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = TOKENIZERS[encoder](embedding_directory=str(embeddings) if embeddings else None)
    clip.tokenizer_options = {}
    if encoder == "clip-g":
        clip.cond_stage_model = SimpleNamespace(clip_g=None)
    return clip


@pytest.fixture(scope="module", params=TOKENIZERS)
def clip(request: pytest.FixtureRequest) -> Any:
    return clip_of(request.param)


@pytest.fixture(scope="module")
def sd1() -> Any:
    return clip_of("clip-l")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, weights in {
        "three-v1": {"emb_params": torch.full((3, 768), 0.5)},
        "xl": {"clip_l": torch.full((2, 768), 0.5), "clip_g": torch.full((2, 1280), 0.5)},
        "one": {"emb_params": torch.full((768,), 0.5)},
    }.items():
        safetensors.torch.save_file(weights, tmp_path / f"{name}.safetensors")
    return tmp_path


def sub_of(clip: Any) -> Any:
    return getattr(clip.tokenizer, "clip_l", None) or getattr(clip.tokenizer, clip.tokenizer.clip)


def flat(clip: Any, text: str) -> list[Any]:
    """The tokens of the first list of ComfyUI, in the order of the conditioning."""
    lists = clip.tokenize(text)
    return [entry[0] for chunk in lists.get("l") or next(iter(lists.values())) for entry in chunk]


def squeezed(text: str) -> str:
    """Folded, without spaces; a final sigma and a curly quote are no other signs to a tokenizer."""
    return "".join(fold(text).split()).translate(str.maketrans("ς“”", 'σ""'))


def check_words(clip: Any, text: str, words: WordMap) -> None:
    """ComfyUI's ids at a word's positions read as the word."""
    ids, sub = flat(clip, text), sub_of(clip)
    assert len(ids) == words.length == len(words.pieces)
    for word in words.words:
        # A token may straddle a word and the punctuation that follows; then it reads as more than the word.
        read = squeezed(sub.tokenizer.decode([ids[p] for p in word.positions]))
        assert squeezed(word.text) in read or "\ufffd" in read, (text, word, read)
    named = {p for word in words.words for p in word.positions}
    assert named.isdisjoint((*words.special, *words.pad))
    assert sorted(
        (*named, *words.special, *words.pad, *(p.position for p in words.pieces if p.kind == "other"))
    ) == list(range(words.length))


def test_a_simple_prompt(clip: Any) -> None:
    words = tokens.word_map(clip, "a (red cat:1.3) on a wooden-table")
    assert words.plain == "a red cat on a wooden-table"
    assert words.length == 77
    assert words.find("red cat") == (2, 3)
    assert words.find("wooden-table") == (6, 8)
    assert words.find("a") == (1, 5)
    assert words.special == (0, 9)
    assert words.pad == tuple(range(10, 77))
    assert words.content() == (2, 3, 4, 6, 8)
    check_words(clip, words.text, words)


@pytest.mark.parametrize("encoder", TOKENIZERS)
def test_the_encoder_is_named(encoder: str) -> None:
    assert tokens.word_map(clip_of(encoder), "cat").encoder == encoder


def test_the_list_of_the_paper(sd1: Any) -> None:
    words = tokens.word_map(sd1, "aeroplane, trees, grass, snow, pavement, building, pole, background")
    assert words.find("aeroplane") == (1, 2)
    assert words.content() == (1, 2, 4, 6, 8, 10, 12, 14, 16)
    assert [words.find(p) for p in words.rest(["aeroplane"])] == [(4,), (6,), (8,), (10,), (12,), (14,), (16,)]


@pytest.mark.parametrize("seed", range(8))
def test_random_prompts_with_weights(clip: Any, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        text = ""
        for _ in range(rng.randint(1, 60)):
            word = rng.choice(VOCABULARY)
            shape = rng.choice(["{} ", "{}, ", "({}:1.2) ", "(({})) ", "\\({}\\) ", "({}\n", "{}) ", "({} (x:0.5)) "])
            text += shape.format(word)
        words = tokens.word_map(clip, text)
        check_words(clip, text, words)
        for word in words.words:
            if word.keys:
                assert set(word.positions) <= set(words.find(word.text))


def test_the_words_are_all_there(sd1: Any) -> None:
    """Nothing that stands in the prompt is lost on the way."""
    for word in VOCABULARY:
        words = tokens.word_map(sd1, f"x {word} y")
        assert "".join(w.text for w in words.words[1:-1]) == word
        assert (words.find("x"), words.find("y")) == ((1,), (words.special[1] - 1,))


def test_slow_tokenizers_give_the_same_map(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older transformers tell no offsets; where the text is changed on the way, neighbours may share their tokens."""
    sub = sub_of(sd1)
    plain = [word for word in VOCABULARY if word != "cafe\u0301"]
    prompts = ["a (red cat:1.3), " + " ".join(plain), "!!! ,,, (a)", ""]
    fast = [tokens.word_map(sd1, text) for text in prompts]
    tokenizer = sub.tokenizer

    class Slow:
        decode = staticmethod(tokenizer.decode)

        def __call__(self, text: str) -> Any:
            return tokenizer(text)

    monkeypatch.setattr(sub, "tokenizer", Slow())
    for text, expected in zip(prompts, fast, strict=True):
        slow = tokens.word_map(sd1, text)
        assert [(w.text, w.positions) for w in slow.words] == [(w.text, w.positions) for w in expected.words]
    shared = tokens.word_map(sd1, "x cafe\u0301, y")
    assert [w.positions for w in shared.words] == [(1,), (2, 3), (2, 3), (4,)]


def test_long_prompts_have_chunks(clip: Any) -> None:
    text = "a red cat on a wooden table, " * 14
    words = tokens.word_map(clip, text)
    assert words.length == 154
    assert words.special == (0, 76, 77, 115)
    assert len(words.find("cat")) == 14
    assert words.find("cat#1") == (3,)
    assert words.find("cat#10") == (75,)
    assert words.find("cat#11") == (77 + 8,)
    assert words.pad == tuple(range(116, 154))
    check_words(clip, text, words)


def test_a_phrase_over_the_border_of_two_chunks(sd1: Any) -> None:
    words = tokens.word_map(sd1, "cat " * 74 + "red table and sky")
    assert words.find("red table") == (75, 78)


def test_a_weighted_segment_that_does_not_fit_moves_whole(sd1: Any) -> None:
    words = tokens.word_map(sd1, "cat " * 73 + "(a red dog on a table:1.2)")
    assert words.special == (0, 74, 77, 84)
    assert words.pad[:2] == (75, 76)
    assert words.find("red dog") == (79, 80)
    check_words(sd1, words.text, words)


def test_an_exclamation_mark_is_no_padding(clip: Any) -> None:
    words = tokens.word_map(clip, "wow ! cat!")
    assert words.special == (0, 5)
    assert words.pad[0] == 6
    assert [w.positions for w in words.words if w.text == "!"] == [(2,), (4,)]
    assert words.find("cat") == (3,)


def test_typed_end_of_text_does_not_end_the_prompt(sd1: Any) -> None:
    words = tokens.word_map(sd1, "cat <|endoftext|> dog")
    assert words.find("dog") == (3,)
    assert words.special == (0, 4)


def test_escaped_and_nested_parentheses(sd1: Any) -> None:
    words = tokens.word_map(sd1, "((cat:1.2) dog:0.8) \\(bird\\) (tree")
    assert words.plain == "cat dog (bird) (tree"
    assert words.find("bird") == (4,)
    assert words.find("cat dog") == (1, 2)
    check_words(sd1, words.text, words)


def test_prompts_without_words(clip: Any) -> None:
    check_wordless(clip, lambda text, words: check_words(clip, text, words), "(,:1.2)")  # the weight is no word


def test_embeddings_have_as_many_positions_as_vectors(folder: Path) -> None:
    clip = clip_of("clip-l", folder)
    text = "a cat, embedding:three-v1, embedding:three-v1 dog (embedding:one:1.2)<x> end"
    words = tokens.word_map(clip, text)
    assert words.find("embedding:three-v1") == (4, 5, 6, 8, 9, 10)
    assert words.find("three-v1#2") == (8, 9, 10)
    assert words.find("dog") == (11,)
    assert words.find("one") == (12,)
    assert words.find("end") == (16,)
    vectors = [i for i, token in enumerate(flat(clip, text)) if torch.is_tensor(token)]
    assert vectors == [p.position for p in words.pieces if p.kind == "embedding"]


def test_unknown_embeddings_are_no_words(folder: Path) -> None:
    words = tokens.word_map(clip_of("clip-l", folder), "embedding:nope, a cat embedding:nope dog")
    assert [w.text for w in words.words] == [",", "a", "cat", "dog"]
    assert words.find("dog") == (4,)
    with pytest.raises(PhraseError):
        words.find("nope")


@pytest.mark.parametrize(
    "text",
    [
        "embedding:three-v1",
        "embedding:three-v1 embedding:xl",
        "(embedding:three-v1) cat",
        "x embedding:three-v1,, y\nembedding:one",
        "xembedding:one y",
        "embedding:three-v1[a] <b>",
        "embedding:  three-v1   cat   dog",
        "cat " * 72 + "embedding:three-v1 embedding:three-v1 dog",
    ],
)
def test_embeddings_anywhere(folder: Path, text: str) -> None:
    if "[" in text:
        source = inspect.getsource(comfy.sd1_clip.SDTokenizer._try_get_embedding)
        need(r"[<\[]" in source, "embedding names that end at a bracket")
    clip = clip_of("clip-l", folder)
    words = tokens.word_map(clip, text)
    ids = flat(clip, text)
    assert [p.position for p in words.pieces if p.kind == "embedding"] == [
        i for i, token in enumerate(ids) if torch.is_tensor(token)
    ]
    for word in words.words:
        if word.keys and not word.text.startswith("embedding:"):
            assert sub_of(clip).tokenizer.decode([ids[p] for p in word.positions]).strip() == word.text


class Stub(torch.nn.Module):
    """A text model whose token vectors are the ids themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def get_input_embeddings(self) -> Any:
        return lambda ids, out_dtype: ids[..., None].expand(*ids.shape, self.width).to(out_dtype)


@pytest.mark.parametrize("text", ["cat embedding:three-v1 dog", "cat embedding:xl dog embedding:three-v1 bird"])
@pytest.mark.parametrize("encoder", ["clip-l", "clip-h"])
def test_positions_are_those_of_the_text_model(folder: Path, encoder: str, text: str) -> None:
    """ComfyUI drops vectors of a wrong width only when it encodes: the words after them move up."""
    clip = clip_of(encoder, folder)
    sub = sub_of(clip)
    model = comfy.sd1_clip.SDClipModel.__new__(comfy.sd1_clip.SDClipModel)
    torch.nn.Module.__init__(model)
    model.transformer = Stub(sub.embedding_size)
    model.special_tokens = {"start": 49406, "end": 49407, "pad": sub.pad_token}
    rows = model.process_tokens([flat(clip, text)], torch.device("cpu"))[0][0, :, 0]
    words = tokens.word_map(clip, text)
    assert rows.shape[0] == words.length
    for piece in words.pieces:
        assert rows[piece.position] == (0.5 if piece.kind == "embedding" else piece.token_id)
    assert ("embedding" in {p.kind for p in words.pieces}) == (encoder == "clip-l")


def test_an_embedding_for_both_encoders_of_sdxl(folder: Path) -> None:
    words = tokens.word_map(clip_of("clip-l+g", folder), "cat embedding:xl dog")
    assert (words.find("xl"), words.find("dog")) == ((2, 3), (4,))


def test_an_embedding_for_one_encoder_of_sdxl_only(folder: Path) -> None:
    clip = clip_of("clip-l+g", folder)
    with pytest.raises(WordMapError, match="made for only one of them"):
        tokens.word_map(clip, "cat embedding:three-v1 dog")
    assert tokens.word_map(clip, "cat dog embedding:three-v1").find("dog") == (2,)


def test_another_tokenizer_is_refused_by_name() -> None:
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = comfy.text_encoders.ace.AceT5Tokenizer.__new__(comfy.text_encoders.ace.AceT5Tokenizer)
    with pytest.raises(WordMapError, match=r"AceT5Tokenizer yet; .*one of these: SD1Tokenizer.*FluxTokenizer"):
        tokens.word_map(clip, "cat")


def test_a_conditioning_carries_its_map(sd1: Any) -> None:
    words = tokens.word_map(sd1, "cat")
    extra = {"pooled_output": None, "theirs": 1}
    conditioning = [[torch.zeros(1, 77, 4), extra], [torch.zeros(1, 77, 4), {}]]
    carrying = tokens.attach(conditioning, words)
    assert all(tokens.attached(entry[1]) is words for entry in carrying)
    assert carrying[0][0] is conditioning[0][0]
    assert carrying[0][1]["theirs"] == 1
    assert tokens.attached(extra) is None
    with pytest.raises(WordMapError):
        tokens.attach([[torch.zeros(1, 154, 4), {}]], words)
