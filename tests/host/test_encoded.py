"""Whatever node encodes a prompt, its words are known: on ComfyUI's own nodes, and through those that change a conditioning."""

from __future__ import annotations

import copy
import functools
import importlib
import io
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.hydit
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import pytest
import torch

from goca_core.capture.tokenizers.qwen import after_system

from .helpers import encoding_clip

WIDTH = 8
# The pack's own modules: the pass-through is installed once in ComfyUI, which is shared.
ours = SimpleNamespace()


class Model:
    """A text encoder's model whose vectors are the tokens' ids: what a test needs to know is where each token went."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, object())
        self.names = names

    def reset_clip_options(self) -> None: ...
    def set_clip_options(self, _options: Any) -> None: ...

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        keys = [name.removeprefix("clip_") for name in self.names]
        if keys == ["l", "t5xxl"] or keys == ["qwen3_4b"]:  # Flux: T5 alone
            keys = keys[-1:]
        parts = [self.vectors(tokens[key]) for key in keys if tokens.get(key)]
        if keys[:2] == ["l", "g"]:
            length = min(part.shape[1] for part in parts[:2])
            parts[:2] = [torch.cat([part[:, :length, : WIDTH // 2] for part in parts[:2]], -1)]
        return torch.cat(parts, 1), torch.zeros(1, WIDTH)

    @staticmethod
    def vectors(chunks: list[Any]) -> torch.Tensor:
        ids = [entry[0] if isinstance(entry[0], int) else -1 for chunk in chunks for entry in chunk]
        places = torch.arange(len(ids)) / 1000
        return (torch.tensor(ids, dtype=torch.float32) + places)[None, :, None].repeat(1, 1, WIDTH)


KINDS = {
    "sd1": (comfy.sd1_clip.SD1Tokenizer, ("clip_l",)),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, ("clip_l", "clip_g")),
    "sd3": (comfy.text_encoders.sd3_clip.SD3Tokenizer, ("clip_l", "clip_g", "t5xxl")),
    "flux": (comfy.text_encoders.flux.FluxTokenizer, ("clip_l", "t5xxl")),
    "zimage": (comfy.text_encoders.z_image.ZImageTokenizer, ("qwen3_4b",)),
}


@functools.cache
def clip_of(kind: str) -> Any:
    """A CLIP of ComfyUI with a real tokenizer."""
    tokenizer, names = KINDS[kind]
    return encoding_clip(tokenizer(), Model(*names))


@pytest.fixture(scope="module", autouse=True)
def modules(pack: ModuleType) -> None:
    for name in ("capture.conditioning", "capture.encoded.installed", "capture.encoded.note", "attention.record"):
        setattr(ours, name.split(".")[-1], importlib.import_module(f"{pack.__name__}.goca_core.{name}"))


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    assert ours.installed.install()


def node(host: SimpleNamespace, name: str, *args: Any, **inputs: Any) -> Any:
    """What a node of ComfyUI returns first."""
    made = host.nodes.NODE_CLASS_MAPPINGS[name]
    out = (
        made.execute(*args, **inputs)
        if hasattr(made, "define_schema")
        else getattr(made(), made.FUNCTION)(*args, **inputs)
    )
    return getattr(out, "result", out)[0]


def words_in(conditioning: Any, entry: int = 0) -> Any:
    found = ours.conditioning.words_of(*conditioning[entry])
    assert found is not None
    assert found.length == ours.conditioning.length_of(*conditioning[entry])
    return found


def encoded(host: SimpleNamespace, text: str, kind: str = "sd1") -> Any:
    return node(host, "CLIPTextEncode", clip_of(kind), text)


# -- the nodes that encode --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_prompt_has_the_words_of_encode_prompt(host: SimpleNamespace, kind: str) -> None:
    text = "a (red cat:1.3), on grass" if kind != "zimage" else "a red cat, on grass"
    found = words_in(encoded(host, text, kind))
    assert found == ours.conditioning.word_map(clip_of(kind), text)
    assert len(found.find("red cat")) == 2 * (2 if kind == "sd3" else 1)


def test_each_encoder_of_sdxl_has_its_own_words(host: SimpleNamespace) -> None:
    long = "a blue dog " * 30
    made = node(host, "CLIPTextEncodeSDXL", clip_of("sdxl"), 64, 64, 0, 0, 64, 64, text_g=long, text_l="one red cat")
    found = words_in(made)
    assert found.length == 154
    assert found.find("red cat") == (2, 3)
    assert found.find("dog#1") == (3,)
    assert len(found.find("dog")) == 30
    same = node(host, "CLIPTextEncodeSDXL", clip_of("sdxl"), 64, 64, 0, 0, 64, 64, text_g="a cat", text_l="a cat")
    assert words_in(same) == ours.conditioning.word_map(clip_of("sdxl"), "a cat")


def test_each_encoder_of_sd3_has_its_own_words(host: SimpleNamespace) -> None:
    made = node(host, "CLIPTextEncodeSD3", clip_of("sd3"), "a cat", "the dog", "green grass", "none")
    found = words_in(made)
    assert found.find("cat") == found.find("dog") == (2,)
    vectors = made[0][0][0, :, -1]
    (grass,) = found.find("grass")
    assert grass >= 77 and round(float(vectors[grass])) == clip_of("sd3").tokenize("grass")["t5xxl"][0][0][0]
    alone = words_in(node(host, "CLIPTextEncodeSD3", clip_of("sd3"), "", "", "green grass", "none"))
    assert alone.find("grass") == (grass - 77,)
    shared = words_in(node(host, "CLIPTextEncodeSD3", clip_of("sd3"), "a cat", "a dog", "a cat", "none"))
    assert shared.find("cat")[0] == 2 and len(shared.find("cat")) == 2


def test_flux_has_the_words_of_t5(host: SimpleNamespace) -> None:
    made = node(host, "CLIPTextEncodeFlux", clip_of("flux"), "tags only", "a red cat", 3.5)
    assert words_in(made) == ours.conditioning.word_map(clip_of("flux"), "a red cat")


def test_a_template_that_a_node_gives_is_no_part_of_the_prompt() -> None:
    clip = clip_of("zimage")
    made = clip.encode_from_tokens_scheduled(clip.tokenize("a red cat", llama_template="Show a cat: {} please"))
    found = words_in(made)
    assert found.plain == "a red cat"
    (cat,) = found.find("cat")
    assert (
        round(float(made[0][0][0, cat, 0] - cat / 1000))
        == clip.tokenize(" cat", llama_template="{}")["qwen3_4b"][0][0][0]
    )
    assert cat > 3


class Seeing(Model):
    """Makes three vectors of each image, and leaves out the template as Qwen-Image does."""

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        (chunk,) = tokens["qwen25_7b"]
        seen = [e for entry in chunk for e in ([(-2, 1.0)] * 3 if isinstance(entry[0], dict) else [entry])]
        first = after_system([entry[0] for entry in seen])
        return self.vectors([seen[first:]]), torch.zeros(1, WIDTH)


def test_prompts_of_edits_have_their_words_after_the_images(host: SimpleNamespace) -> None:
    clip = copy.copy(clip_of("zimage"))
    clip.tokenizer, clip.cond_stage_model = comfy.text_encoders.qwen_image.QwenImageTokenizer(), Seeing()
    text = "put a red cat on the picture"
    image = torch.rand(1, 40, 30, 3)
    for made in (
        node(host, "TextEncodeQwenImageEdit", clip, text, image=image),
        node(host, "TextEncodeQwenImageEditPlus", clip, text, image1=image, image2=image),
    ):
        found = words_in(made)
        assert [word.text for word in found.words] == text.split()
        for word in found.words:
            (position,) = word.positions
            expected = clip.tokenizer.qwen25_7b.tokenizer(f" {word.text}" if word.start else word.text)["input_ids"]
            if word.text != "put":
                assert round(float(made[0][0][0, position, 0])) == expected[0]
        joined = words_in(node(host, "ConditioningConcat", made, made))
        assert joined.find("cat#2") == (made[0][0].shape[1] + found.find("cat")[0],)
    assert words_in(node(host, "TextEncodeQwenImageEdit", clip, text)) == ours.conditioning.word_map(clip, text)
    assert "Tensor" not in repr(vars(made[0][1][ours.note.KEY])), "an image is kept in memory"


def test_nodes_that_make_the_conditioning_themselves(host: SimpleNamespace) -> None:
    """As many packs do: the tensors alone are taken, and another dictionary is put beside them."""
    clip = clip_of("sd1")
    cond, pooled = clip.encode_from_tokens(clip.tokenize("a red cat"), return_pooled=True)
    made = [[cond, {"pooled_output": pooled}]]
    area = node(host, "ConditioningSetAreaPercentage", made, 0.5, 0.5, 0.0, 0.0, 1.0)
    assert words_in(made).find("cat") == words_in(area).find("cat") == (3,)
    assert words_in([[clip.encode("a red cat"), {}]]).find("cat") == (3,)


def test_parts_that_are_tokenised_one_by_one(host: SimpleNamespace) -> None:
    """As packs do that know BREAK: chunks of several texts, with weights of their own."""
    clip = clip_of("sdxl")
    made = clip.tokenize("a red cat")
    for key, chunks in clip.tokenize("green grass").items():
        made[key] += [[(token, 1.5) for token, _ in chunk] for chunk in chunks]
    found = words_in(clip.encode_from_tokens_scheduled(made))
    assert found.find("cat") == (3,) and found.find("grass") == (79,)
    with pytest.raises(ValueError, match="not in the prompt"):
        found.find("dog")


def test_a_clip_with_a_schedule_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI encodes the prompt once for each part of the schedule, past encode_from_tokens."""
    clip = clip_of("sd1")
    hooks = SimpleNamespace(
        get_hooks_for_clip_schedule=lambda: [((0.0, 0.5), []), ((0.5, 1.0), [])], reset=lambda: None
    )
    monkeypatch.setattr(clip.patcher, "forced_hooks", hooks)
    monkeypatch.setattr(clip.patcher, "patch_hooks", lambda _hooks: None, raising=False)
    monkeypatch.setattr(clip, "use_clip_schedule", True)
    made = clip.encode_from_tokens_scheduled(clip.tokenize("a red cat"), show_pbar=False)
    assert [words_in(made, entry).find("cat") for entry in (0, 1)] == [(3,), (3,)]


# -- the nodes that change a conditioning -------------------------------------------------------------------------------


def test_the_words_stay_through_other_nodes(host: SimpleNamespace) -> None:
    cat, dog = encoded(host, "a red cat"), encoded(host, "one blue dog")
    expected = words_in(cat)
    mask = torch.ones(1, 8, 8)
    changed = {
        "area": node(host, "ConditioningSetArea", cat, 64, 64, 0, 0, 1.0),
        "mask": node(host, "ConditioningSetMask", cat, mask, "default", 1.0),
        "range": node(host, "ConditioningSetTimestepRange", cat, 0.0, 0.5),
        "average": node(host, "ConditioningAverage", cat, dog, 0.7),
        "copy": copy.deepcopy(cat),
        "strength": node(host, "ConditioningSetAreaStrength", cat, 0.5),
    }
    for name, made in changed.items():
        assert words_in(made) == expected, name
    both = node(host, "ConditioningCombine", cat, dog)
    assert (words_in(both).find("cat"), words_in(both, 1).find("dog")) == ((3,), (3,))


def test_concatenated_prompts_have_all_their_words(host: SimpleNamespace) -> None:
    cat, dog = encoded(host, "a red cat"), encoded(host, "one blue dog, " * 20)
    joined = node(host, "ConditioningConcat", cat, node(host, "ConditioningSetAreaStrength", dog, 0.5))
    found = words_in(joined)
    assert found.length == 77 + dog[0][0].shape[1]
    assert found.find("red cat") == (2, 3)
    assert found.find("dog") == tuple(77 + place for place in words_in(dog).find("dog"))
    thrice = words_in(node(host, "ConditioningConcat", joined, cat))
    assert thrice.find("cat") == (3, joined[0][0].shape[1] + 3) and thrice.find("cat#2")[0] > 77
    # What comes from elsewhere has no words; those of the first part stay where they are.
    unknown = words_in(node(host, "ConditioningConcat", cat, [[torch.randn(1, 5, WIDTH), {}]]))
    assert unknown.find("cat") == (3,) and unknown.length == 82
    # ComfyUI keeps the dictionary of the first part, which may say nothing of words.
    assert words_in(node(host, "ConditioningConcat", [[cat[0][0], {}]], dog)).find("cat") == (3,)
    assert ours.conditioning.words_of(torch.randn(1, 77, WIDTH), {}) is None


def test_words_of_another_prompt_of_the_same_length_are_refused(host: SimpleNamespace) -> None:
    Tokens = ours.record.Tokens
    own, other = words_in(encoded(host, "a red cat")), ours.conditioning.word_map(clip_of("sd1"), "a red dog")
    recorded = Tokens(tuple(range(77)), False, 77, own)
    assert recorded.word_map(ours.conditioning.word_map(clip_of("sd1"), "A red CAT")).find("CAT") == (3,)
    with pytest.raises(ValueError, match=r'another prompt, "a red dog", than the conditioning, .* "a red cat"'):
        recorded.word_map(other)
    assert Tokens(tuple(range(77)), False, 77).word_map(other) is other


# -- the pass-through ---------------------------------------------------------------------------------------------------


def test_what_is_encoded_is_the_same_without_it(host: SimpleNamespace) -> None:
    clip, text = clip_of("sd3"), "a (red cat:1.3) on grass"
    with_it = encoded(host, text, "sd3")
    given = clip.tokenize(text, return_word_ids=True)
    ours.installed.remove()
    ((cond, extra),) = encoded(host, text, "sd3")
    assert torch.equal(cond, with_it[0][0])
    assert set(with_it[0][1]) == {*extra, ours.note.KEY} and ours.note.KEY not in extra
    assert given == clip.tokenize(text, return_word_ids=True)


def test_it_is_installed_once_and_removed(host: SimpleNamespace) -> None:
    names = ("tokenize", "encode_from_tokens", "encode_from_tokens_scheduled")
    there = [getattr(comfy.sd.CLIP, name) for name in names]
    assert ours.installed.install()
    assert [getattr(comfy.sd.CLIP, name) for name in names] == there
    ours.installed.remove()
    assert [getattr(comfy.sd.CLIP, name) for name in names] == [wrapper.__wrapped__ for wrapper in there]
    assert ours.note.KEY not in encoded(host, "a cat")[0][1]
    assert ours.installed.install()
    assert words_in(encoded(host, "a cat")).find("cat") == (2,)


def test_it_can_be_switched_off(host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.installed.remove()
    monkeypatch.setenv("GOCA_WORDS", "0")
    assert not ours.installed.install()
    assert ours.note.KEY not in encoded(host, "a cat")[0][1]


def test_wrappers_of_other_packs_stay(host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    wrapper = comfy.sd.CLIP.encode_from_tokens

    @functools.wraps(wrapper)
    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("theirs")
        return wrapper(self, *args, **kwargs)

    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens", theirs)
    assert ours.installed.install()
    assert comfy.sd.CLIP.encode_from_tokens is theirs, "it is not wrapped a second time"
    assert words_in(encoded(host, "a cat")).find("cat") == (2,)
    ours.installed.remove()
    assert comfy.sd.CLIP.encode_from_tokens is theirs
    assert ours.note.KEY not in encoded(host, "a cat")[0][1]
    assert ours.installed.install()
    assert words_in(encoded(host, "a cat")).find("cat") == (2,)
    assert len(seen) == 3


def test_a_prompt_that_cannot_be_read_is_encoded_all_the_same(
    host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of("sd1")
    for broken in ([], {"l": 5}, {"l": [5]}, {"l": [[(7, 1.0), (8,)]]}, {"odd": [[(7, 1.0)]]}):
        monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", lambda _tokens: (torch.ones(1, 3, 4), None))
        assert clip.encode_from_tokens(broken).shape == (1, 3, 4)
    monkeypatch.undo()

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyError("what")

    made = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    monkeypatch.setattr(clip.tokenizer, "tokenize_with_weights", broken)
    assert ours.conditioning.words_of(*made[0]) is None
    assert ours.conditioning.attached(made[0][1]) is None


def test_an_encoder_that_adds_vectors_of_its_own_has_unknown_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be before the words, whose places would then be wrong."""
    clip = clip_of("sd1")
    plain = clip.cond_stage_model.encode_token_weights

    def padded(made: Any) -> Any:
        cond, pooled = plain(made)
        return torch.cat([torch.zeros(1, 3, WIDTH), cond], 1), pooled

    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", padded)
    made = clip.encode_from_tokens_scheduled(clip.tokenize("a red cat"))
    assert ours.conditioning.words_of(*made[0]) is None
    assert ours.conditioning.words_of(made[0][0], {}) is None


def test_it_keeps_no_model_and_no_tensor(host: SimpleNamespace) -> None:
    before = len(ours.note.ENCODED)
    made = encoded(host, "a cat")
    assert len(ours.note.ENCODED) == before + 1
    note = made[0][1][ours.note.KEY]
    assert isinstance(note.encoders["clip_l"], bool)
    del made
    assert len(ours.note.ENCODED) == before


def test_a_saved_conditioning_is_plain_data(host: SimpleNamespace) -> None:
    file = io.BytesIO()
    torch.save(encoded(host, "a red cat"), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert words_in(loaded).find("red cat") == (2, 3)


def test_it_costs_next_to_nothing(host: SimpleNamespace) -> None:
    """Against a text encoder of CLIP-L's size with a twelfth of its layers: at most 2 % more for all twelve."""
    clip = clip_of("sd1")
    config = {"num_hidden_layers": 1, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    layer = comfy.sd1_clip.SD1ClipModel(model_options={"clip_l_model_config": config})

    def spent(work: Any, times: int) -> float:
        each = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            each.append(time.perf_counter() - start)
        return min(each)

    text = "a red cat on the grass, " * 8
    made = clip.tokenize(text)
    with torch.inference_mode():
        encoding = 12 * spent(lambda: layer.encode_token_weights(made), 3)

    def noting() -> None:
        ours.installed._remember(clip, text, made, {})
        ours.installed._leave(ours.installed._note(clip, made), {"cond": torch.zeros(1, 154, 8)})

    assert spent(noting, 20) < 0.02 * encoding
