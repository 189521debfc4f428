"""Language models with byte-level tokens of the prompt inside a chat template: Qwen, and Mistral (Flux.2 dev, ERNIE-Image).

Words of the template do not count as words of the prompt, although "image", "shape" or "user" may occur in both. Only
tokens in the range of characters where the prompt was inserted count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from ...words.build import Token, build
from ...words.word_map import WordMap
from .base import (
    WHOLE,
    Adapter,
    PromptTokens,
    Span,
    by_byte,
    fast_spans,
    is_vector,
    measured_spans,
    moved,
    plain_of,
    within,
)

_START, _USER, _NEWLINE = 151644, 872, 198  # <|im_start|>, "user" and the line break after it
_BACKGROUND, _COLON = 4004, 25
_OPENING, _SHOWN = "<|im_start|>", "<|vision_start|><|image_pad|><|vision_end|>"
OWN = (_OPENING, "<|start_header_id|>")
"""Beginnings of a text that already contains a template, for Qwen-Image and related models."""

# The ids of a chat -> the number of ids at its beginning that are not in the conditioning.
PrefixLength = Callable[[Sequence[Any]], int]


def byte_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """The vocabulary has one character for each byte, including spaces."""
    return fast_spans(sub, text) or measured_spans(
        sub, text, lambda token: len(sub.inv_vocab[token]), lambda run: [by_byte(run)], WHOLE
    )


def llama_spans(sub: Any, text: str) -> tuple[list[int], list[Span]]:
    """Of Llama 3, from the lengths of the tokens: some versions of the library give wrong character positions.

    These versions also look up characters where the vocabulary has bytes, and drop those that they do not find, most of
    all spaces.
    """
    known = {piece for piece in sub.inv_vocab.values() if len(piece) == 1}

    def owners(run: str) -> list[list[int]]:
        return [by_byte(run), [place for place, char in enumerate(run) if char in known]]

    return measured_spans(sub, text, lambda token: len(sub.inv_vocab[token]), owners, WHOLE)


def after_system(ids: Sequence[Any]) -> int:
    """Qwen-Image drops all tokens before the user's part, and the header of that part."""
    starts = [place for place, token in enumerate(ids) if token == _START][:2]
    dropped = starts[-1] if starts else -1
    if len(ids) - dropped > 3 and list(ids[dropped + 1 : dropped + 3]) == [_USER, _NEWLINE]:
        dropped += 3
    # ComfyUI keeps only the last token of a text without any start.
    return dropped if dropped >= 0 else len(ids) - 1


def from_user(ids: Sequence[Any]) -> int:
    """Qwen-Image 2.1 keeps the user's part with its header."""
    return next(iter([place for place, token in enumerate(ids) if token == _START][1:2]), 0)


def _after_background(ids: Sequence[Any]) -> int:
    """Ovis-Image keeps the tokens after "... of the objects and background"."""
    dropped = next((place for place, token in enumerate(ids) if token == _BACKGROUND), len(ids) - 1)
    return dropped + (len(ids) > dropped + 1 and ids[dropped + 1] == _COLON)


def _boogu_template(tokenizer: Any, text: str) -> str:
    return tokenizer.llama_template if text.strip() else tokenizer.llama_template_drop


class Chat(NamedTuple):
    """A prompt inside a template, as ComfyUI tokenises it, with the tokens that are in the conditioning."""

    plain: str
    tokens: list[Token]
    length: int
    breaks: list[int]


def chat(
    clip: Any,
    text: str,
    prefix: PrefixLength = lambda _ids: 0,
    own: tuple[str, ...] = (),
    template: Callable[[Any, str], str] = lambda tokenizer, _text: tokenizer.llama_template,
    weights: bool = False,
) -> Chat:
    """Tokenise a prompt inside its template.

    ``prefix``: how many ids are dropped at the beginning, by default none. ``own``: beginnings of a text that contains a
    template. ``template``: (ComfyUI's tokenizer, text) -> the template; by default the tokenizer's own. ``weights``:
    whether ComfyUI parses weights in the prompt.
    """
    name = clip.tokenizer.clip_name
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    ids = [None if is_vector(entry[0]) else entry[0] for entry in chunks[0]]
    # Older versions of ComfyUI put some of these texts into the template all the same.
    is_complete = bool(own) and text.startswith(own) and ids.count(_START) <= text.count(_OPENING)
    around = "{}" if is_complete else template(clip.tokenizer, text)
    before = around.partition("{}")[0]
    prompt = PromptTokens(getattr(clip.tokenizer, name), chunks, around.format(text), byte_spans, weights)
    plain, _ = plain_of(text, weights)
    first, start, end = prefix(ids), len(before), len(before) + len(plain)
    tokens = [within(token, start, end) for token in prompt.tokens() if token.position >= first]
    breaks = [edge - start for edge in prompt.breaks if start < edge < end]
    return Chat(plain, moved(tokens, -first), prompt.length - first, breaks)


def chat_words(clip: Any, text: str, encoder: str, **options: Any) -> WordMap:
    """The word map for a text encoder that gets the prompt in a chat template (see ``chat``)."""
    found = chat(clip, text, **options)
    return build(text, found.plain, encoder, found.length, found.tokens, found.breaks)


def _o1_words(clip: Any, text: str) -> WordMap:
    """HiDream-O1 puts the tokens of the prompt into a template of tokens, of which none is a word."""
    sub = clip.tokenizer.hidream_o1
    prompt = PromptTokens(sub, clip.tokenize(text, return_word_ids=True)["hidream_o1"], text, byte_spans, weights=False)
    tokens = [replace(token, kind="other" if token.kind == "pad" else token.kind) for token in prompt.tokens()]
    return build(text, prompt.plain, "qwen3-vl", prompt.length, tokens, prompt.breaks)


def images_template(tokenizer: Any, images: int) -> str | None:
    """The template of a prompt with so many images, if the tokenizer has another one for that."""
    template = getattr(tokenizer, "llama_template_images", None) if images else None
    if template is None:
        return None
    kinds, numbers = [kind.__name__ for kind in type(tokenizer).__mro__], range(1, images + 1)
    if "QwenImage21Tokenizer" in kinds:
        shown = " ".join(f"<image{number}>{_SHOWN}" for number in numbers)
        return str(tokenizer.llama_template).replace("{}", shown + "{}", 1)
    if "MageFlowTokenizer" in kinds:
        return str(template).replace("{}", "".join(f"Image {number}: {_SHOWN}" for number in numbers) + "{}", 1)
    if "Qwen3VLTokenizer" in kinds:
        return str(template).replace(_SHOWN, _SHOWN * images, 1)
    return str(template)


_QWEN25 = partial(chat_words, encoder="qwen2.5", prefix=after_system, own=OWN)
_QWEN3_VL = partial(chat_words, encoder="qwen3-vl", own=(_OPENING,))

TOKENIZERS: dict[str, Adapter] = {
    "ZImageTokenizer": partial(chat_words, encoder="qwen3"),
    "KleinTokenizer": partial(chat_words, encoder="qwen3"),
    "KleinTokenizer8B": partial(chat_words, encoder="qwen3"),
    **dict.fromkeys(
        ("QwenImageTokenizer", "Kandinsky5Tokenizer", "Kandinsky5TokenizerImage", "Kandinsky6Tokenizer"), _QWEN25
    ),
    "Omnigen2Tokenizer": partial(chat_words, encoder="qwen2.5", weights=True),
    "OvisTokenizer": partial(chat_words, encoder="qwen3", prefix=_after_background),
    "Krea2Tokenizer": partial(_QWEN3_VL, prefix=after_system),
    "MageFlowTokenizer": partial(_QWEN3_VL, prefix=after_system),
    "QwenImage21Tokenizer": partial(_QWEN3_VL, prefix=from_user),
    "JoyImageTokenizer": partial(_QWEN3_VL, prefix=lambda ids: min(34, len(ids))),
    "BooguTokenizer": partial(_QWEN3_VL, template=_boogu_template),
    "HiDreamO1Tokenizer": _o1_words,
    "Ideogram4Tokenizer": _QWEN3_VL,
    "Ideogram4Qwen3VLTokenizer": _QWEN3_VL,
    # The vocabulary of these comes with their weights.
    "Flux2Tokenizer": partial(chat_words, encoder="mistral"),
    "ErnieTokenizer": partial(chat_words, encoder="mistral", template=lambda _tokenizer, _text: "{}"),
}
