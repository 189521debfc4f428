"""Ming-Image: learned tokens that the text encoder fills, and then the prompt inside a chat template.

The template ends with the block of the learned tokens, which is not among the prompt's own. Reference images stand before the
prompt.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import Adapter, moved
from .qwen import chat

LEARNED = 256
IMAGE = 157157
"""The sign for an image in the text, and for the learned tokens."""
_BLOCK = "<image><imagePatch></image>"
_BLOCK_LENGTH = 3


def template(tokenizer: Any, images: int) -> str:
    """The template of a prompt with so many images."""
    shown = "\n\n".join([_BLOCK] * images) + "\n" if images else ""
    return str(tokenizer.llama_template).replace("{}", f"{shown}{{}}", 1)


def _words(clip: Any, text: str) -> WordMap:
    def tokenize(given: str, return_word_ids: bool = False) -> dict[str, Any]:
        # ComfyUI puts what is shown in the place of the signs.
        chunks = clip.tokenize(given, return_word_ids=return_word_ids)["ming_image"]
        return {
            "ming_image": [
                [(IMAGE if isinstance(entry[0], dict) else entry[0], *entry[1:]) for entry in chunk] for chunk in chunks
            ]
        }

    found = chat(SimpleNamespace(tokenizer=clip.tokenizer, tokenize=tokenize), text)
    kept = found.length - _BLOCK_LENGTH
    own = [replace(token, kind=_kind(token)) for token in found.tokens if token.position < kept]
    learned = [Token(place, -1, "<query>", "other") for place in range(LEARNED)]
    return build(text, found.plain, "bailing", LEARNED + kept, learned + moved(own, LEARNED), found.breaks)


def _kind(token: Token) -> str:
    return "other" if token.kind in ("start", "end", "pad") else token.kind


TOKENIZERS: dict[str, Adapter] = {"MingImageTokenizer": _words}
