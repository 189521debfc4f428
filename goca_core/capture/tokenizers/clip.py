"""CLIP's byte-pair tokens, in chunks of 77 that each have a start and an end token."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap, WordMapError
from .base import Adapter, PromptTokens, Span, fast_spans, is_vector, length_of, measured_spans, place

_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def clip_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The vocabulary has one character for each byte of the lower-case text."""

    def owners(run: str) -> list[list[int]]:
        # Some tokenizers first replace curly quotes by straight ones.
        readings = (run, run.translate(_STRAIGHT))
        return [[i for i, char in enumerate(reading) for _ in char.lower().encode()] for reading in readings]

    return fast_spans(sub, text) or measured_spans(
        sub, text, lambda token: len(sub.inv_vocab[token].removesuffix("</w>")), owners
    )


def clip_tokens(clip: Any, text: str, keys: tuple[str, ...]) -> tuple[PromptTokens, list[Token], int]:
    """The prompt as tokenised for the first encoder, its tokens, and their number.

    All encoders must have each word at the same positions.
    """
    chunks = clip.tokenize(text, return_word_ids=True)
    first, *others = keys
    prompt = PromptTokens(getattr(clip.tokenizer, f"clip_{first}"), chunks[first], text, clip_spans)
    tokens = prompt.tokens()
    words = [(t.position, t.token_id) for t in tokens if t.kind == "word"]
    for key in others:
        placed = place(getattr(clip.tokenizer, f"clip_{key}"), chunks[key])
        if [(p.position, p.token) for p in placed if p.word and not is_vector(p.token)] != words:
            raise WordMapError(
                "The two text encoders of this model have the same words at different positions, most likely because an "
                "embedding in the prompt was made for only one of them; remove it or move it to the end of the prompt."
            )
    # ComfyUI truncates the longer one.
    length = min(length_of(chunks[key]) for key in keys)
    return prompt, [token for token in tokens if token.position < length], length


def clip_words(clip: Any, text: str, encoder: str, keys: tuple[str, ...]) -> WordMap:
    prompt, tokens, length = clip_tokens(clip, text, keys)
    return build(text, prompt.plain, encoder, length, tokens, prompt.breaks)


def _sdxl_words(clip: Any, text: str) -> WordMap:
    """SDXL's tokenizer is also used for the refiner, whose only text encoder is CLIP-G."""
    model = getattr(clip, "cond_stage_model", None)
    if hasattr(model, "clip_g") and not hasattr(model, "clip_l"):
        return clip_words(clip, text, "clip-g", ("g",))
    return clip_words(clip, text, "clip-l+g", ("l", "g"))


TOKENIZERS: dict[str, Adapter] = {
    "SD1Tokenizer": partial(clip_words, encoder="clip-l", keys=("l",)),
    "SD2Tokenizer": partial(clip_words, encoder="clip-h", keys=("h",)),
    "SDXLTokenizer": _sdxl_words,
    "StableCascadeTokenizer": partial(clip_words, encoder="clip-g", keys=("g",)),
}
