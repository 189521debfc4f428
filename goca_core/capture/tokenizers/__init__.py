"""One file per kind of tokenizer. `TOKENIZERS` maps the exact name of each ComfyUI tokenizer class to its adapter.

The name must match exactly: ComfyUI's tokenizers for T5 and for language models are subclasses of the one for CLIP, but
their tokens have another layout.
"""

from __future__ import annotations

from . import bert, clip, hidream, hunyuan_image, hunyuan_video, lens, longcat, ming, minimax_h3, qwen, t5
from .base import Adapter

_KINDS = (clip, t5, bert, qwen, hidream, hunyuan_image, hunyuan_video, longcat, lens, minimax_h3, ming)
TOKENIZERS: dict[str, Adapter] = {name: adapter for kind in _KINDS for name, adapter in kind.TOKENIZERS.items()}
