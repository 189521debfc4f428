"""T5's SentencePiece tokens: no start token, ``</s>`` at the end, padded to a fixed length or not at all.

A piece that begins a word starts with a sign for the space. If the vocabulary has no such piece, the sign is a separate
token, which belongs to no word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import dropwhile
from typing import Any

from ...words.build import Token, build
from ...words.word_map import WordMap, WordMapError
from .base import Adapter, PromptTokens, Span, fast_spans, within
from .clip import clip_tokens

_SPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
ANIMA_LENGTH = 512
"""Number of tokens to which Anima pads a short prompt."""


def ltx2_length(tokens: int) -> int:
    """Number of tokens that LTX-2 attends to for a prompt of so many: learned ones follow, up to a multiple of 128."""
    return -(-max(1024, tokens) // 128) * 128


def t5_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """From a fast tokenizer, or from what is in it: the library below, or SentencePiece (mT5 and others whose vocabulary comes
    with the weights)."""
    ids, spans = fast_spans(sub, text) or _bare(sub.tokenizer.tokenizer, text)
    pieces = [str(sub.inv_vocab.get(token, "")) for token in ids]
    return ids, [
        (a, a) if piece and not piece.strip(_SPACE) else (a, b) for piece, (a, b) in zip(pieces, spans, strict=True)
    ]


def _bare(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    if not hasattr(tokenizer, "encode_batch"):
        return _sentencepiece(tokenizer, text)
    found = tokenizer.encode(text, add_special_tokens=False)
    return list(found.ids), [(a, b) for a, b in found.offsets]


def _sentencepiece(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    plain = {"add_bos": False, "add_eos": False}
    ids = list(processor.encode(text, **plain))
    try:
        spans = [(a, b) for a, b in processor.encode(text, return_type="offset_mapping", **plain)["offsets"]]
    except TypeError:  # before version 0.2.2
        spans = [(p.begin, p.end) for p in processor.encode(text, out_type="immutable_proto", **plain).pieces]
    # Of a character that is encoded as several bytes, only the last byte has its range; give it to all of them.
    for number in reversed(range(len(ids) - 1)):
        start, end = spans[number]
        if start == end and _BYTE.fullmatch(processor.id_to_piece(ids[number])):
            spans[number] = (start, spans[number + 1][1])
    return ids, spans


def t5_words(
    clip: Any,
    text: str,
    attribute: str,
    key: str = "t5xxl",
    encoder: str = "t5",
    padded: Callable[[int], int] = lambda tokens: tokens,
) -> WordMap:
    """For models that only get T5's tokens; a second encoder may give a pooled vector, which has no positions.

    ``padded``: tokens of a prompt -> number of tokens to which the model itself pads it.
    """
    sub = getattr(clip.tokenizer, attribute)
    chunks = clip.tokenize(text, return_word_ids=True)[key]
    if getattr(sub, "pad_left", False):
        # The encoder drops this padding.
        chunks = [list(dropwhile(lambda entry: not entry[2] and entry[0] == sub.pad_token, chunk)) for chunk in chunks]
    prompt = PromptTokens(sub, chunks, text, t5_spans)
    length = padded(prompt.length)
    padding = [Token(position, 0, "", "pad") for position in range(prompt.length, length)]
    return build(text, prompt.plain, encoder, length, [*prompt.tokens(), *padding], prompt.breaks)


def _sd3_words(clip: Any, text: str) -> WordMap:
    """The tokens of both CLIPs at shared positions, followed by T5's: every word has two positions.

    Each of the three encoders may be missing.
    """
    model = getattr(clip, "cond_stage_model", None)
    present = [
        name for name in ("clip_l", "clip_g", "t5xxl") if model is None or getattr(model, name, None) is not None
    ]
    keys = tuple(name.removeprefix("clip_") for name in present if name != "t5xxl")
    prompts: list[PromptTokens] = []
    tokens: list[Token] = []
    length = 0
    if keys:
        prompt, tokens, length = clip_tokens(clip, text, keys)
        prompts.append(prompt)
    if "t5xxl" in present:
        prompt = PromptTokens(clip.tokenizer.t5xxl, clip.tokenize(text, return_word_ids=True)["t5xxl"], text, t5_spans)
        tokens, length = tokens + prompt.tokens(length), length + prompt.length
        prompts.append(prompt)
    if not prompts:
        raise WordMapError(
            "This CLIP contains no text encoder, so its conditioning has no words; load a text encoder with the model."
        )
    encoder = "+".join([*(["clip"] if keys else []), *(["t5"] if "t5xxl" in present else [])])
    return build(text, prompts[0].plain, encoder, length, tokens, prompts[0].breaks)


def _pixeldit_words(clip: Any, text: str) -> WordMap:
    """Gemma's tokens of the prompt after an instruction; the start token and the last of them remain."""
    from comfy.text_encoders import pixeldit

    known, instruction = pixeldit._PIXELDIT_CHI_PROMPT_DETECT_PREFIX, pixeldit._PIXELDIT_CHI_PROMPT
    before = "" if not text.strip() or text.startswith(known) else instruction
    whole = before + text if text.strip() else ""
    sub, chunks = clip.tokenizer.gemma2_2b, clip.tokenize(text, return_word_ids=True)["gemma2_2b"]
    prompt = PromptTokens(sub, chunks, whole, t5_spans, weights=False)
    start, end = len(before), len(prompt.plain)
    cut = max(0, prompt.length - pixeldit._PIXELDIT_MAX_LENGTH)
    tokens = [within(token, start, end) for token in prompt.tokens() if not 0 < token.position <= cut]
    tokens = [replace(token, position=max(0, token.position - cut)) for token in tokens]
    breaks = [edge - start for edge in prompt.breaks if start < edge < end]
    return build(text, prompt.plain[start:], "gemma", prompt.length - cut, tokens, breaks)


TOKENIZERS: dict[str, Adapter] = {
    "PixelDiTGemma2Tokenizer": _pixeldit_words,
    "SD3Tokenizer": _sd3_words,
    # Others with SentencePiece: a T5 with Llama's vocabulary, and Gemma, which has a start but no end token.
    "AuraT5Tokenizer": partial(t5_words, attribute="clip_pile_t5xl", key="pile_t5xl", encoder="pile-t5"),
    "LuminaTokenizer": partial(t5_words, attribute="gemma2_2b", key="gemma2_2b", encoder="gemma"),
    "NewBieTokenizer": partial(t5_words, attribute="gemma", key="gemma", encoder="gemma"),
    "LTXAVGemmaTokenizer": partial(
        t5_words, attribute="gemma3_12b", key="gemma3_12b", encoder="gemma", padded=ltx2_length
    ),
    # LTX-2.5, with Gemma 4.
    "LTXAVGemma4Tokenizer": partial(t5_words, attribute="gemma4", key="gemma4", encoder="gemma", padded=ltx2_length),
    "WanT5Tokenizer": partial(t5_words, attribute="clip_umt5xxl", key="umt5xxl", encoder="umt5"),
    # Its language model gives one vector per T5 token.
    "AnimaTokenizer": partial(t5_words, attribute="t5xxl", padded=lambda tokens: max(ANIMA_LENGTH, tokens)),
    **dict.fromkeys(
        ("PixArtTokenizer", "MochiT5Tokenizer", "LTXVT5Tokenizer", "CosmosT5Tokenizer", "CogVideoXTokenizer"),
        partial(t5_words, attribute="clip_t5xxl"),
    ),
    "FluxTokenizer": partial(t5_words, attribute="t5xxl"),
}
