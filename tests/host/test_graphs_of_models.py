"""Whole graphs of other models in ComfyUI's own executor: tiny networks, real tokenizers, and the nodes that users wire.

Each graph samples the same with and without a recorder, and the words of its prompt are where their tokens are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import comfy.sd1_clip
import pytest
import torch
from torch import Tensor

from goca_core.capture.tokenizers.qwen import after_system

from . import tiny
from .helpers import encoding_clip, packed
from .older import need, part
from .vocabularies import gemma
from .word_checks import t5_vocabulary

Prompt = dict[str, dict[str, Any]]
TEXT = "a red cat sits on the wooden table"
SCALE = 1e-4  # of an id as a number of a vector
IMAGE = 3  # vectors of an image


class Encoder:
    """A text encoder's model: random vectors of its tokens, whose first number is the token's id."""

    def __init__(self, name: str, key: str, width: int, extra: dict[str, Any], cut: bool) -> None:
        setattr(self, name, object())
        self._key, self._width, self._extra, self._cut = key, width, extra, cut

    def reset_clip_options(self) -> None: ...
    def set_clip_options(self, _options: Any) -> None: ...

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        (chunk,) = tokens[self._key]
        ids = [one for entry in chunk for one in ([-1] * IMAGE if isinstance(entry[0], dict) else [int(entry[0])])]
        if self._cut:
            ids = ids[after_system(ids) :]
        if self._extra:  # LTX-2 drops the padding before the prompt
            ids = ids[next(place for place, token in enumerate(ids) if token) :]
        vectors = [torch.randn(self._width, generator=torch.Generator().manual_seed(token + 2)) for token in ids]
        encoded = torch.stack(vectors)[None]
        encoded[..., 0] = torch.tensor(ids) * SCALE
        return encoded, None, dict(self._extra)


def _clip(kind: str) -> Any:
    """A CLIP of ComfyUI with the tokenizer of a model."""
    makes: dict[str, tuple[Any, str, str, int, dict[str, Any], bool]] = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, "clip_l", "l", 48, {}, False),
        "qwen_image": (part("qwen_image.QwenImageTokenizer"), "qwen25_7b", "qwen25_7b", 40, {}, True),
        "wan21_vace": (
            lambda: part("wan.WanT5Tokenizer")(tokenizer_data={"spiece_model": t5_vocabulary()}),
            "umt5xxl", "umt5xxl", 40, {}, False,
        ),
        "ltx2": (
            lambda: part("lt.LTXAVGemmaTokenizer")(tokenizer_data={"spiece_model": gemma()}),
            "gemma3_12b", "gemma3_12b", 40, {"unprocessed_ltxav_embeds": True}, False,
        ),
    }  # fmt: skip
    make, name, key, width, extra, cut = makes[kind]
    return encoding_clip(make(), Encoder(name, key, width, extra, cut))


class TinyModel:
    """A node that loads a tiny model with its text encoder, and makes an empty latent for it."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "LATENT"), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    def load(self, name: str) -> tuple[Any, Any, dict[str, Any]]:
        built = tiny.build(name)
        height, width = built.size
        latent = tiny.latent(built.channels, 1, height, width, built.frames, built.sound)
        return built.model, _clip(name), {"samples": latent}


class Keep:
    """A node at the end of a graph, which keeps what it is given."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tests", True
    kept: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {}), "name": ("STRING", {})}}

    def keep(self, value: Any, name: str) -> tuple[()]:
        self.kept[name] = value
        return ()


class First:
    """A node that hands a conditioning on."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "give", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING", {})}}

    def give(self, conditioning: Any) -> tuple[Any]:
        return (conditioning,)


class ControlVideo:
    """What WanVaceToVideo adds to both prompts, for the latent of a tiny model."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING", "CONDITIONING"), "add", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"positive": ("CONDITIONING", {}), "negative": ("CONDITIONING", {})}}

    def add(self, positive: Any, negative: Any) -> tuple[Any, Any]:
        import node_helpers

        generator = torch.Generator().manual_seed(4)
        control = {
            "vace_frames": [torch.randn(1, 32, 3, 16, 24, generator=generator)],
            "vace_mask": [torch.ones(1, 64, 3, 16, 24)],
            "vace_strength": [0.8],
        }
        positive, negative = (node_helpers.conditioning_set_values(each, control) for each in (positive, negative))
        return positive, negative


@pytest.fixture
def executor(host: SimpleNamespace, pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """ComfyUI's executor, with the nodes above."""
    for node in (TinyModel, Keep, First, ControlVideo):
        monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, f"Test{node.__name__}", node)
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_args: None)
    monkeypatch.setattr(Keep, "kept", {})
    kind = getattr(host.execution, "CacheType", None)
    need(kind is not None, "kinds of caches")

    def run(prompt: Prompt) -> dict[str, Any]:
        ends = [name for name, node in prompt.items() if node["class_type"] == "TestKeep"]
        Keep.kept.clear()
        # A new one, so that nothing is taken from the graph before.
        made = host.execution.PromptExecutor(
            server, cache_type=kind.CLASSIC, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        )
        made.execute(prompt, "graph", {}, ends)
        assert made.success, [message for message in made.status_messages if message[0] == "execution_error"]
        return dict(Keep.kept)

    yield run


def of(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def keep(name: str, node: str, slot: int = 0) -> dict[str, Any]:
    return of("TestKeep", value=[node, slot], name=name)


RECORD = {
    "window": "auto", "start_percent": 0.5, "end_percent": 1.0, "max_evaluations": 4, "head_methods": "auto",
    "layer_methods": "auto", "propagation_grid": "auto", "reference_channel0": False, "reference_grid": "auto",
    "method": "auto", "record": "positive",
}  # fmt: skip
MASKS = {
    "phrases": "red cat\nwooden table", "background": "auto", "mode": "partition", "background_rule": "auto", "theta": 0.0,
    "propagation": -1, "smooth": 0.0, "largest_component": False, "size": "image", "width": 512, "height": 512,
    "remove_small": 0.0, "fill_holes": False, "skip_absent": False,
}  # fmt: skip
SAMPLE = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def base(name: str, encoder: Prompt) -> Prompt:
    """A model, its recorder, and both prompts; ``encoder``: the nodes that encode the positive one, the last as "positive"."""
    return {
        "model": of("TestTinyModel", name=name),
        "record": of("GOCA_RecordAttention", model=["model", 0], **RECORD),
        "negative": of("CLIPTextEncode", clip=["model", 1], text="a blue dog"),
        **encoder,
    }


def ended(prompt: Prompt, latent: tuple[str, int] = ("sample", 0)) -> Prompt:
    """The graph with masks of its words, and with what the test looks at."""
    collected = of("GOCA_CollectAttention", recorder=["record", 1], latent=list(latent))
    return {
        **prompt,
        "collect": collected,
        "masks": of("GOCA_MaskFromTokens", source=["record", 1], latent=list(latent), **MASKS),
        "k1": keep("latent", *latent),
        "k2": keep("attention", "collect"),
        "k3": keep("masks", "masks"),
        "k4": keep("positive", "positive"),
    }


def unrecorded(prompt: Prompt) -> Prompt:
    """The same graph without the pack's nodes: samplers get the model itself."""
    kept = copy.deepcopy({k: n for k, n in prompt.items() if not n["class_type"].startswith("GOCA_")})
    for name in [name for name, node in kept.items() if node["inputs"].get("value", [""])[0] in ("collect", "masks")]:
        del kept[name]
    for node in kept.values():
        if node["inputs"].get("model") == ["record", 0]:
            node["inputs"]["model"] = ["model", 0]
    return kept


def check(run: Any, prompt: Prompt, words: list[str], kind: str) -> Any:
    """Run a graph with and without recording; returns the recording."""
    recorded, plain = run(prompt), run(unrecorded(prompt))
    assert torch.equal(packed(recorded["latent"]["samples"]), packed(plain["latent"]["samples"]))
    assert packed(plain["latent"]["samples"]).std() > 0
    attention, cond = recorded["attention"], recorded["positive"][0][0]
    found = attention.tokens.words
    assert found is not None and [word.text for word in found.words] == words
    sub = next(value for value in vars(_clip(kind).tokenizer).values() if isinstance(value, comfy.sd1_clip.SDTokenizer))
    for word in found.words:
        ids = [round(float(cond[0, place, 0]) / SCALE) for place in word.positions]
        assert str(sub.tokenizer.decode(ids)).strip() == word.text, "the words are at other tokens"
    masks: Tensor = recorded["masks"]
    assert masks.shape[0] == 2 * max(1, attention.images) and set(masks.unique().tolist()) <= {0.0, 1.0}
    return attention


def test_two_stages(executor: Any) -> None:
    """The first stage leaves noise to the second; each is a recording of its own."""
    advanced = {key: SAMPLE[key] for key in ("steps", "cfg", "sampler_name", "scheduler")} | {"steps": 6}
    prompts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    first = {
        "add_noise": "enable",
        "noise_seed": 5,
        "start_at_step": 0,
        "end_at_step": 3,
        "return_with_leftover_noise": "enable",
    }
    second = {
        **first,
        "add_noise": "disable",
        "start_at_step": 3,
        "end_at_step": 100,
        "return_with_leftover_noise": "disable",
    }
    graph = base("sd15", {"positive": of("CLIPTextEncode", clip=["model", 1], text=TEXT)})
    graph["half"] = of(
        "KSamplerAdvanced", model=["record", 0], latent_image=["model", 2], **prompts, **advanced, **first
    )
    graph["sample"] = of(
        "KSamplerAdvanced", model=["record", 0], latent_image=["half", 0], **prompts, **advanced, **second
    )
    late = check(executor, ended(graph), TEXT.split(), "sd15")
    early = check(executor, ended(graph, ("half", 0)), TEXT.split(), "sd15")
    assert "far from the best level" in early.note and early.sigmas[0] > late.sigmas[0]


def sampled(graph: Prompt, latent: tuple[str, int] = ("model", 2)) -> Prompt:
    prompts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    return {**graph, "sample": of("KSampler", model=["record", 0], latent_image=list(latent), **prompts, **SAMPLE)}


def test_an_edit_of_two_images(executor: Any) -> None:
    """The words follow both images, of which the text encoder makes several vectors each."""
    images = {
        f"image{number}": of("EmptyImage", width=64 * number, height=64, batch_size=1, color=number * 100)
        for number in (1, 2)
    }
    inputs = {name: [name, 0] for name in images}
    encoder = of("TextEncodeQwenImageEditPlus", clip=["model", 1], prompt=TEXT, **inputs)
    graph = ended(sampled(base("qwen_image", {**images, "positive": encoder})))
    attention = check(executor, graph, TEXT.split(), "qwen_image")
    assert attention.family == "qwen-image" and min(attention.tokens.words.find("red")) > 2 * IMAGE


def test_a_control_video(executor: Any) -> None:
    """Wan Vace: the node hands both prompts on, with what the control video is."""
    graph = base("wan21_vace", {"encoded": of("CLIPTextEncode", clip=["model", 1], text=TEXT)})
    graph["video"] = of("TestControlVideo", positive=["encoded", 0], negative=["negative", 0])
    graph["positive"] = of("TestFirst", conditioning=["video", 0])
    graph = ended(sampled(graph))
    attention = check(executor, graph, TEXT.split(), "wan21_vace")
    assert (attention.family, attention.frames, attention.images) == ("wan", 3, 9)


def test_a_video_with_sound(executor: Any) -> None:
    """LTX-2, and the video alone is asked for after the sound was taken away."""
    graph = base("ltx2", {"encoded": of("CLIPTextEncode", clip=["model", 1], text=TEXT)})
    graph["timed"] = of("LTXVConditioning", positive=["encoded", 0], negative=["negative", 0], frame_rate=25.0)
    graph["positive"] = of("TestFirst", conditioning=["timed", 0])
    graph = sampled(graph)
    graph["video"] = of("LTXVSeparateAVLatent", av_latent=["sample", 0])
    attention = check(executor, ended(graph, ("video", 0)), TEXT.split(), "ltx2")
    assert (attention.family, attention.frames, attention.images) == ("ltx2", 3, 17)
    assert check(executor, ended(graph), TEXT.split(), "ltx2").frames == 3
