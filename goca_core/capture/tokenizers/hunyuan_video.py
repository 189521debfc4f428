"""HunyuanVideo 1: a prompt in the chat template of Llama 3; ComfyUI keeps the user's part and the end token after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...words.build import build
from ...words.word_map import WordMap
from .base import Adapter, PromptTokens, is_vector, moved, plain_of, within
from .qwen import llama_spans

_HEAD, _END = (128006, 882, 128007), 128009  # "user" between the header tokens, and <|eot_id|>
_BLANK = 271  # two line breaks


def _user_part(ids: Sequence[Any]) -> slice:
    """The tokens that ComfyUI keeps: from after the last user header to the first end token after it."""
    first, last = 0, None
    for place, token in enumerate(ids):
        if tuple(ids[place : place + 3]) == _HEAD:
            first, last = place + 2, -1
        if token == _END and last == -1:
            last = place + 1
    if len(ids) > first + 2 and ids[first + 1] == _BLANK:
        first += 2
    return slice(*slice(first, last).indices(len(ids))[:2])


def _words(clip: Any, text: str) -> WordMap:
    before, _, after = clip.tokenizer.llama_template.partition("{}")
    chunks = clip.tokenize(text, return_word_ids=True)["llama"]
    prompt = PromptTokens(clip.tokenizer.llama, chunks, f"{before}{text}{after}", llama_spans)
    plain, segments = plain_of(text)
    kept = _user_part([None if is_vector(entry[0]) else entry[0] for entry in chunks[0]])
    start, end = len(before), len(before) + len(plain)
    tokens = [within(token, start, end) for token in prompt.tokens() if kept.start <= token.position < kept.stop]
    breaks = [edge for segment in segments for edge in segment]
    return build(text, plain, "llama3", kept.stop - kept.start, moved(tokens, -kept.start), breaks)


TOKENIZERS: dict[str, Adapter] = {"HunyuanVideoTokenizer": _words}
