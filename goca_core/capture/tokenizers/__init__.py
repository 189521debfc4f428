"""One file for each kind of tokenizer; `TOKENIZERS` has a row for each tokenizer class of the host, by its exact name.

Exact, because the host's tokenizers of T5 and of language models are subclasses of CLIP's but lay out their tokens
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...words.word_map import WordMap
from . import bert, clip, hidream, hunyuan_image, hunyuan_video, lens, longcat, mistral, qwen, t5

_KINDS = (clip, t5, bert, qwen, mistral, hidream, hunyuan_image, hunyuan_video, longcat, lens)
TOKENIZERS: dict[str, Callable[[Any, str], WordMap]] = {
    name: reader for kind in _KINDS for name, reader in kind.TOKENIZERS.items()
}
