"""Language models of the Mistral family, whose vocabulary comes with their weights: Flux.2 dev and ERNIE-Image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...words.word_map import WordMap
from .qwen import bare, chat_words

TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    "Flux2Tokenizer": partial(chat_words, encoder="mistral"),
    "ErnieTokenizer": partial(chat_words, encoder="mistral", template=bare),
}
