"""From a CLIP object of the host and a prompt to the word map of the conditioning that the host makes of them.

The ids and their places are always the host's own (`clip.tokenize`: its chunks, options, weights and embeddings). What
is worked out here only is which characters of the prompt each of them stands for, and that is checked id by id, so that
a wrong map cannot come out silently. `readers` has a file for each kind of tokenizer.
"""

from __future__ import annotations

from typing import Any

from ..words.word_map import WordMap, WordMapError
from .tokenizers import TOKENIZERS
from .tokenizers.t5 import ANIMA_LENGTH

KEY = "goca_words"
"""Where a conditioning's dictionary carries its word map."""

# What text encoders give beside the conditioning [B, ..., T, C], and how often the model puts it behind that: Hunyuan-DiT
# mT5 after BERT, HiDream two layers of Llama after T5, HunyuanImage the letters of ByT5 after Qwen (HunyuanVideo 1.5
# before it).
_APPENDED = {"conditioning_mt5xl": 1, "conditioning_llama3": 2, "conditioning_byt5small": 1}


def word_map(clip: Any, text: str) -> WordMap:
    """The word map of `text` as this CLIP would encode it."""
    name = type(clip.tokenizer).__name__
    if name not in TOKENIZERS:
        raise WordMapError(
            f"The words of a prompt cannot be located for the text encoder {name} yet; these can: {', '.join(TOKENIZERS)}."
        )
    return TOKENIZERS[name](clip, text)


def attach(conditioning: list[Any], words: WordMap) -> list[Any]:
    """A copy of a CONDITIONING whose entries carry the word map."""
    for cond, extra in conditioning:
        words.check(length_of(cond, extra))
    return [[cond, {**extra, KEY: words}] for cond, extra in conditioning]


def length_of(cond: Any, extra: dict[str, Any]) -> int:
    """Text tokens that the model sees of a conditioning entry: those of [B, T, C] and what else it appends to that."""
    if extra.get("t5xxl_ids") is not None:
        # Anima's language model is asked at the places of T5's tokens; they are filled up to a length.
        return max(ANIMA_LENGTH, int(extra["t5xxl_ids"].shape[-1]))
    appended = ((extra[key], times) for key, times in _APPENDED.items() if extra.get(key) is not None)
    return int(cond.shape[1] + sum(times * part.shape[-2] for part, times in appended))


def attached(extra: dict[str, Any]) -> WordMap | None:
    """The word map that a conditioning entry's dictionary carries."""
    return extra.get(KEY)
