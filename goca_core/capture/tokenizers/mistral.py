"""Mistral language models, whose vocabulary comes with their weights: Flux.2 dev and ERNIE-Image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...words.word_map import WordMap
from .qwen import chat_words, no_template

TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    "Flux2Tokenizer": partial(chat_words, encoder="mistral"),
    "ErnieTokenizer": partial(chat_words, encoder="mistral", template=no_template),
}
