"""Text encoders of tiny models: ComfyUI's own tokenizers, and random vectors that say which token they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goca_core.capture.tokenizers.qwen import after_system

from .helpers import encoding_clip
from .older import part
from .vocabularies import gemma
from .word_checks import t5_vocabulary

SCALE = 1e-4  # of an id as a number of a vector
IMAGE = 3  # vectors of an image


class Kind(NamedTuple):
    """``name``: the attribute of the text encoder's model. ``key``: of the tokens. ``cut``: the system turn is dropped."""

    tokenizer: Callable[[], Any]
    name: str
    key: str
    width: int
    extra: dict[str, Any] = {}  # noqa: RUF012
    cut: bool = False


def _kinds() -> dict[str, Kind]:
    import comfy.sd1_clip

    return {
        "sd15": Kind(lambda: comfy.sd1_clip.SD1Tokenizer(), "clip_l", "l", 48),
        "qwen_image": Kind(
            lambda: part("qwen_image.QwenImageTokenizer")(), "qwen25_7b", "qwen25_7b", 40, cut=True
        ),
        "wan21_vace": Kind(
            lambda: part("wan.WanT5Tokenizer")(tokenizer_data={"spiece_model": t5_vocabulary()}), "umt5xxl", "umt5xxl", 40
        ),
        "ltx2": Kind(
            lambda: part("lt.LTXAVGemmaTokenizer")(tokenizer_data={"spiece_model": gemma()}),
            "gemma3_12b", "gemma3_12b", 40, {"unprocessed_ltxav_embeds": True},
        ),
    }  # fmt: skip


class Encoder:
    """A text encoder's model: random vectors of its tokens, whose first number is the token's id."""

    def __init__(self, kind: Kind) -> None:
        setattr(self, kind.name, object())
        self._kind = kind

    def reset_clip_options(self) -> None: ...
    def set_clip_options(self, _options: Any) -> None: ...

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        (chunk,) = tokens[self._kind.key]
        ids = [one for entry in chunk for one in ([-1] * IMAGE if isinstance(entry[0], dict) else [int(entry[0])])]
        if self._kind.cut:
            ids = ids[after_system(ids) :]
        if self._kind.extra:  # LTX-2 drops the padding before the prompt
            ids = ids[next(place for place, token in enumerate(ids) if token) :]
        generators = [torch.Generator().manual_seed(token + 2) for token in ids]
        encoded = torch.stack([torch.randn(self._kind.width, generator=each) for each in generators])[None]
        encoded[..., 0] = torch.tensor(ids) * SCALE
        return encoded, None, dict(self._kind.extra)


def clip(name: str) -> Any:
    """A CLIP of ComfyUI for a tiny model."""
    kind = _kinds()[name]
    return encoding_clip(kind.tokenizer(), Encoder(kind))


def read(name: str, encoded: Tensor, positions: tuple[int, ...]) -> str:
    """The text of the tokens at these positions of what `clip` encoded."""
    import comfy.sd1_clip

    parts = vars(_kinds()[name].tokenizer()).values()
    tokenizer = next(each for each in parts if isinstance(each, comfy.sd1_clip.SDTokenizer))
    text: str = tokenizer.tokenizer.decode([round(float(encoded[0, place, 0]) / SCALE) for place in positions])
    return text.strip()
