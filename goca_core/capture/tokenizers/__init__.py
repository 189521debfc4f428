"""One file per kind of tokenizer. `TOKENIZERS` maps the exact name of each ComfyUI tokenizer class to its adapter.

The name must match exactly: ComfyUI's tokenizers for T5 and for language models are subclasses of the one for CLIP, but
their tokens have another layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...words.word_map import WordMap
from . import bert, clip, hidream, hunyuan_image, hunyuan_video, lens, longcat, mistral, qwen, t5

_KINDS = (clip, t5, bert, qwen, mistral, hidream, hunyuan_image, hunyuan_video, longcat, lens)
TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    name: adapter for kind in _KINDS for name, adapter in kind.TOKENIZERS.items()
}
