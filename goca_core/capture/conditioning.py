"""Build the word map of a conditioning from ComfyUI's CLIP object and the prompt.

Token ids and positions always come from ComfyUI itself (`clip.tokenize`: its chunks, options, weights and embeddings).
This module only finds out which characters of the prompt each token stands for. It checks that token by token, so a wrong
map cannot pass unnoticed. `tokenizers` has one file per kind of tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..words.join import join
from ..words.word_map import WordMap, WordMapError
from .encoded.note import ENCODED, KEY
from .families import FAMILIES
from .tokenizers import TOKENIZERS
from .tokenizers.t5 import ANIMA_LENGTH, ltx2_length

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


def length_of(cond: Any, extra: Mapping[str, Any]) -> int:
    """Text tokens of a conditioning entry as the model sees them: those of [B, T, C] and those that it adds to them."""
    if extra.get("t5xxl_ids") is not None:
        # Anima gives one vector per T5 token and pads them to a fixed length.
        return max(ANIMA_LENGTH, int(extra["t5xxl_ids"].shape[-1]))
    if extra.get("unprocessed_ltxav_embeds"):
        return ltx2_length(int(cond.shape[1]))
    added = ((extra[key], copies) for key, copies in _ADDED.items() if extra.get(key) is not None)
    return int(cond.shape[1] + sum(copies * part.shape[-2] for part, copies in added))


def attached(extra: Mapping[str, Any]) -> WordMap | None:
    """The word map in a conditioning entry's dictionary, if it has one.

    It may be there as a note that makes it, or as plain data if the conditioning was read from a file.
    """
    found = extra.get(KEY)
    if hasattr(found, "word_map"):
        found = found.word_map()
    if isinstance(found, Mapping):
        try:
            return WordMap.from_json(dict(found))
        except WordMapError:
            return None
    words: WordMap | None = found
    return words


def words_of(cond: Any, extra: Mapping[str, Any]) -> WordMap | None:
    """The word map of a conditioning entry, whichever node encoded it; None if its words are unknown.

    Other nodes may have put several encoded prompts one after another. All that are still known by their tensors have their
    words in it.
    """
    words = attached(extra)
    if KEY in extra and words is None:
        return None
    length = length_of(cond, extra)
    if words is not None and words.length >= length:
        return words
    if length != cond.shape[1]:  # text that the model adds may be before or after this
        return words if KEY in extra else _encoded(cond, 0)[0]
    if words is not None and getattr(extra[KEY], "length", words.length) != words.length:
        return None  # the encoder has added vectors of its own, nobody knows where
    parts, place = ([], 0) if words is None else ([(0, words)], words.length)
    while place < length:
        found, count = _encoded(cond, place)
        if found is not None:
            parts.append((place, found))
        if not count:
            break  # added by a node that encodes no prompt
        place += count
    if len(parts) == 1 and parts[0][1].length == length:
        return parts[0][1]
    return join(parts, length) if parts else None


def unusable(cond: Tensor, extra: Mapping[str, Any], prompt: str) -> str:
    """Why no words can be told apart in a conditioning entry, as a sentence; empty if they can.

    ``prompt``: "positive" or "negative".
    """
    if cond.device.type != "cpu":
        return ""  # ComfyUI keeps them on the CPU; elsewhere they would have to be waited for
    if not torch.isfinite(cond).all():
        return (
            f"The {prompt} conditioning is not a number (NaN or infinity), so no mask can be made; correct weights such as "
            "(cat:nan) in the prompt, or run the text encoder at a higher precision."
        )
    if length_of(cond, extra) == cond.shape[1] and not cond.any():
        return (
            f"The {prompt} conditioning is zeroed out, so all of its words are the same to the model; connect an encoded "
            f"prompt to the {prompt} input of the sampler, without Conditioning Zero Out."
        )
    return ""


def _encoded(cond: Any, start: int) -> tuple[WordMap | None, int]:
    """The word map of the prompt whose tokens begin at a position, and their number; None and 0 if it is unknown."""
    note, count = ENCODED.note_at(cond, start) or (None, 0)
    words = None if note is None else note.word_map()
    return (words if words is not None and words.length == count else None), count
