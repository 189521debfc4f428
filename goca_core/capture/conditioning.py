"""Build the word map of a conditioning from ComfyUI's CLIP object and the prompt.

Token ids and positions always come from ComfyUI itself (`clip.tokenize`: its chunks, options, weights and embeddings).
This module only finds out which characters of the prompt each token stands for. It checks that token by token, so a wrong
map cannot pass unnoticed. `tokenizers` has one file per kind of tokenizer.
"""

from __future__ import annotations

from typing import Any

from ..words.word_map import WordMap, WordMapError
from .families import FAMILIES
from .tokenizers import TOKENIZERS
from .tokenizers.t5 import ANIMA_LENGTH

KEY = "goca_words"
"""The key under which a conditioning's dictionary carries its word map."""

# Text that models add to the conditioning [B, ..., T, C], as each family declares it: key -> how many copies.
_ADDED = dict(part for family in FAMILIES for part in family.added_text)


def word_map(clip: Any, text: str) -> WordMap:
    """The word map of `text` as this CLIP would encode it."""
    name = type(clip.tokenizer).__name__
    if name not in TOKENIZERS:
        raise WordMapError(
            f"Prompt words cannot be located for the text encoder {name} yet; use a model with one of these: "
            f"{', '.join(TOKENIZERS)}."
        )
    return TOKENIZERS[name](clip, text)


def attach(conditioning: list[Any], words: WordMap) -> list[Any]:
    """A copy of a CONDITIONING whose entries carry the word map."""
    for cond, extra in conditioning:
        words.check(length_of(cond, extra))
    return [[cond, {**extra, KEY: words}] for cond, extra in conditioning]


def length_of(cond: Any, extra: dict[str, Any]) -> int:
    """Text tokens of a conditioning entry as the model sees them: those of [B, T, C] and those that it adds to them."""
    if extra.get("t5xxl_ids") is not None:
        # Anima gives one vector per T5 token and pads them to a fixed length.
        return max(ANIMA_LENGTH, int(extra["t5xxl_ids"].shape[-1]))
    added = ((extra[key], copies) for key, copies in _ADDED.items() if extra.get(key) is not None)
    return int(cond.shape[1] + sum(copies * part.shape[-2] for part, copies in added))


def attached(extra: dict[str, Any]) -> WordMap | None:
    """The word map in a conditioning entry's dictionary, if it has one."""
    return extra.get(KEY)
