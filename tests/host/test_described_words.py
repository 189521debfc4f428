"""The words of Ming-Image, whose prompt has tokens of its own beside those of the conditioning."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .described import SEEN, MingEncoder, ming_tokenizer
from .helpers import encoding_clip
from .test_encoded import modules, node, noted, ours, words_in
from .word_checks import squeezed

__all__ = ["modules", "noted"]  # fixtures


def clip() -> Any:
    return encoding_clip(ming_tokenizer(), MingEncoder())


def spelt(made: Any, words: Any) -> None:
    """Each word has the tokens of its letters."""
    direct, vocabulary = made[0][1]["direct_context"], ming_tokenizer().ming_image.tokenizer
    for word in words.words:
        ids = [int(direct[0, place - 256, 0]) for place in word.positions]
        assert squeezed(word.text) in squeezed(vocabulary.decode(ids)), word


@pytest.mark.parametrize(
    "text", ["a red cat on the wooden table, 猫", "(red:1.2) cat", "", "<role>HUMAN a friendly AI thinking"]
)
def test_the_words_of_a_prompt(host: SimpleNamespace, text: str) -> None:
    made = node(host, "CLIPTextEncode", clip(), text)
    words = words_in(made)
    assert words.length == 256 + made[0][1]["direct_context"].shape[1]
    assert words == ours.conditioning.word_map(clip(), text) and len(words.pieces) == words.length
    spelt(made, words)
    if "cat" in text:
        assert {"red", "cat"} <= {word.text for word in words.words}
    # Not those of the template.
    assert [word.occurrence for word in words.words if word.text in ("AI", "thinking", "HUMAN")] == [1] * 3 * (
        "AI" in text
    )


@pytest.mark.parametrize("images", [1, 3])
def test_the_words_that_follow_images(images: int) -> None:
    """As the node Text Encode Ming Image Edit encodes a prompt. An image has one token, and several vectors."""
    encoder = clip()
    tokens = encoder.tokenize("the image of a red cat", images=[torch.rand(1, 8, 8, 3)] * images)
    made = encoder.encode_from_tokens_scheduled(tokens)
    words = words_in(made)
    assert [word.text for word in words.words] == ["the", "image", "of", "a", "red", "cat"]
    assert min(words.find("the")) > 256 + images * SEEN
    spelt(made, words)
