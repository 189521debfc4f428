"""One file for each kind of tokenizer; `READERS` has a row for each tokenizer class of the host, by its exact name.

Exact, because the host's tokenizers of T5 and of language models are subclasses of CLIP's but lay out their tokens
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...words import WordMap
from . import bert, clip, qwen, t5

READERS: dict[str, Callable[[Any, str], WordMap]] = {**clip.READERS, **t5.READERS, **bert.READERS, **qwen.READERS}
