"""Prompts with images in them, of the nodes of many models: the words that follow the images are found."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .older import part
from .test_encoded import Model, clip_of, modules, node, noted, ours, words_in

__all__ = ["modules", "noted"]  # fixtures


class Cut(Model):
    """ComfyUI's own text encoder, whose model makes three vectors of each image."""

    def __init__(self, encoder: Any, name: str, layers: bool) -> None:
        super().__init__(name)
        self._encoder = encoder.__new__(encoder)
        torch.nn.Module.__init__(self._encoder)
        self._encoder.clip = self._encoder.clip_name = name
        setattr(self._encoder, name, SimpleNamespace(encode_token_weights=self.see))
        self._layers = layers

    def see(self, chunks: list[Any]) -> Any:
        seen = [e for entry in chunks[0] for e in ([entry] if isinstance(entry[0], int) else [(-2, 1.0)] * 3)]
        vectors = self.vectors([seen])
        return vectors[:, None] if self._layers else vectors, None, {}

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        return self._encoder.encode_token_weights(tokens)


_IMAGE = torch.rand(1, 64, 96, 3)
EDITS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "krea2": ("krea2.Krea2Tokenizer", "krea2.Krea2TEModel", "qwen3vl_4b", "TextEncodeQwenImageEditPlus", {"image1": _IMAGE}),
    "longcat": (
        "longcat_image.LongCatImageTokenizer", "longcat_image.LongCatImageTEModel", "qwen25_7b", "TextEncodeQwenImageEdit",
        {"image": _IMAGE},
    ),
    "boogu": (
        "boogu.BooguTokenizer", "boogu.BooguTEModel", "qwen3vl_8b", "TextEncodeBooguEdit",
        {"negative_prompt": "", "images": {"image_1": _IMAGE, "image_2": _IMAGE}},
    ),
    "mage_flow": (
        "mage_flow.MageFlowTokenizer", "mage_flow.MageFlowTEModel", "qwen3vl_4b", "TextEncodeMageFlowEdit",
        {"images": {"image_1": _IMAGE, "image_2": _IMAGE}},
    ),
    "joyimage": (
        "joyimage.JoyImageTokenizer", "joyimage.JoyImageTEModel", "qwen3vl_8b", "TextEncodeJoyImageEdit",
        {"images": {"image1": _IMAGE}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_edits_of_other_models(host: SimpleNamespace, kind: str) -> None:
    tokenizer, encoder, name, encoding, inputs = EDITS[kind]
    clip = copy.copy(clip_of("zimage"))
    clip.tokenizer, clip.cond_stage_model = part(tokenizer)(), Cut(part(encoder), name, kind == "krea2")
    text = "put the red cat on a picture"
    made = node(host, encoding, clip, text, **inputs)
    found, vocabulary = words_in(made), getattr(clip.tokenizer, name).tokenizer
    assert [word.text for word in found.words] == text.split()
    for word in found.words[1:]:
        (position,) = word.positions
        value = float(made[0][0][0, position, 0])
        assert [round(value - position / 1000)] == vocabulary(f" {word.text}")["input_ids"] or [
            int(value)
        ] == vocabulary(f" {word.text}")["input_ids"]


# -- MiniMax-H3: images, videos and sounds before the prompt -------------------------------------------------------------------


class SeeingH3(Model):
    """Makes six vectors of each image."""

    def __init__(self) -> None:
        super().__init__("qwen3vl_32b")

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        (chunk,) = tokens["qwen3vl_32b"]
        seen = [each for entry in chunk for each in [entry] * (1 if isinstance(entry[0], int) else 6)]
        return self.vectors([seen]), None, {"minimax_token_tags": torch.ones(1)}


class Encoding:
    """A VAE whose latents are empty."""

    @staticmethod
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 24, 2, pixels.shape[1] // 16, pixels.shape[2] // 16)


@pytest.mark.parametrize("shown", [None, "keyframes", "references"])
def test_the_words_of_minimax_h3(host: SimpleNamespace, shown: str | None) -> None:
    module = pytest.importorskip("comfy.text_encoders.minimax")
    clip = copy.copy(clip_of("zimage"))
    clip.tokenizer, clip.cond_stage_model = module.MiniMaxH3Tokenizer(), SeeingH3()
    text, image = "the Picture of a red cat (with:1.2) <Picture 1>", torch.rand(1, 64, 96, 3)
    if shown == "references":
        frames: Any = {"ref_images": {"ref_image_0": image}, "ref_videos": {"ref_video_0": torch.rand(22, 64, 96, 3)}}
        made = node(host, "MiniMaxH3ReferenceToVideo", clip, Encoding(), None, text, 96, 64, 22, **frames)
    else:
        frames = {"first_frame": image, "last_frame": image} if shown == "keyframes" else {}
        made = node(host, "MiniMaxH3ImageToVideo", clip, Encoding(), text, 96, 64, 22, **frames)
    found, alone = words_in(made), ours.conditioning.word_map(clip, text)
    ids = clip.tokenizer.qwen3vl_32b.tokenizer(text)["input_ids"]
    before = made[0][0].shape[1] - len(ids)
    assert (before > 0) is bool(shown)
    assert [word.text for word in found.words] == [word.text for word in alone.words]
    for word, own in zip(found.words, alone.words, strict=True):
        assert word.positions == tuple(place + before for place in own.positions)
        vectors = [int(made[0][0][0, position, 0]) for position in word.positions]
        assert vectors == [ids[place] for place in own.positions]
    assert (
        found.find("cat") and ids[alone.find("cat")[0]] == clip.tokenizer.qwen3vl_32b.tokenizer(" cat")["input_ids"][0]
    )
