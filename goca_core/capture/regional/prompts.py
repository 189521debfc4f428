"""Regional prompts in ComfyUI: encode the prompts of masks and put them into one conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...regional import Conditioning, compose, count_labels, delayed, parse_labels, parse_prompts, region_weights
from ...words.word_map import WordMapError
from ..conditioning import attach, word_map
from ..encoded.note import KEY


def regional_prompt(
    base: Conditioning,
    clip: Any,
    masks: Tensor,
    labels: str,
    prompts: str,
    background: Tensor | None = None,
    strength: float = 1.0,
    feather: float = 0.0,
    start: float = 0.0,
    to_bounds: bool = False,
) -> tuple[Conditioning, str]:
    """A CONDITIONING in which each mask follows its own prompt, and a few lines of text that say which follows what.

    masks: [B * K, H, W], image by image. labels: K lines, or empty (then they are numbers). prompts: lines
    ``label: prompt``, or bare prompts in the order of the labels. The rest as in ``goca_core.regional``.
    Raises RegionalError with one sentence for what does not fit together.
    """
    names = count_labels(masks, parse_labels(labels), background)
    texts = parse_prompts(prompts, names)
    parts = region_weights(masks, len(names), background, feather)
    # Masks with the same words become one region, encoded and sampled once.
    encoded = {text: encode(clip, text) for text in dict.fromkeys(texts.values())}
    conditioning = compose(
        base, [encoded.get(texts.get(name, "")) for name in names], parts, strength, to_bounds=to_bounds
    )
    return delayed(base, conditioning, start), report(names, texts, parts)


def encode(clip: Any, text: str) -> Conditioning:
    """The CONDITIONING of a prompt, with its words where they can be located."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    try:
        return attach(conditioning, word_map(clip, text))
    except WordMapError:
        # Sampling needs no words; those of the base must not take their place.
        return [[tensor, {**extra, KEY: None}] for tensor, extra in conditioning]


def report(names: Sequence[str], texts: dict[str, str], parts: Tensor) -> str:
    """Which label follows which prompt, and its fraction of the image, one line each."""
    areas = parts.mean((0, 2, 3)).tolist()
    lines = [
        f"{name} ({area:.1%}): {texts.get(name, 'the base prompt')}" for name, area in zip(names, areas, strict=False)
    ]
    return "\n".join([*lines, f"everything else ({areas[-1]:.1%}): the base prompt"])
