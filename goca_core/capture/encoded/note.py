"""What is left on a conditioning when it is encoded: enough to make its word map later, if somebody asks for it."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...words.word_map import WordMap
from .texts import Part

KEY = "goca_words"
"""The key under which a conditioning's dictionary carries its word map, or the note that makes it."""

_log = logging.getLogger("goca")


class PromptNote:
    """The text of an encoded prompt and its tokens. Its word map is made once, when it is first asked for.

    ``encoders``: which of the text encoders that a tokenizer serves the model has; None if that is unknown. ``parts``: the
    texts of the tokens of each encoder. ``ids``: these tokens, by which the word map is checked. ``read`` makes the map.
    ``length``: how many vectors the encoder made of them; an image has one token, but many vectors.

    Nodes that copy a conditioning keep the note as it is. One that writes it to a file writes plain data, which ComfyUI
    reads without this pack too.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoders: Mapping[str, Any] | None,
        parts: Mapping[str, tuple[Part, ...]],
        ids: Mapping[str, tuple[tuple[int | None, ...], ...]],
        read: Callable[[PromptNote], WordMap],
    ) -> None:
        self.tokenizer, self.encoders, self.parts, self.ids = tokenizer, encoders, parts, ids
        self.length = 0
        self._read = read
        self._lock = threading.Lock()
        self._words: WordMap | None = None
        self._is_read = False

    def word_map(self) -> WordMap | None:
        """The words of the prompt; None if they cannot be located."""
        with self._lock:
            if not self._is_read:
                try:
                    self._words = self._read(self)
                except Exception as error:  # whatever a tokenizer of another pack does, an image must not fail for it
                    _log.debug("GoCA: the words of a prompt are unknown: %s", error, exc_info=True)
                self._is_read = True
                self.tokenizer, self.parts, self.ids = None, {}, {}
            return self._words

    def __copy__(self) -> PromptNote:
        return self

    def __deepcopy__(self, _memo: Any) -> PromptNote:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        words = self.word_map()
        return OrderedDict, (), None, None, iter({} if words is None else words.to_json().items())


class EncodedTensors:
    """The notes of encoded prompts by their tensors [B, T, C], as long as these exist.

    Nodes that build a conditioning of their own keep the tensor but not the dictionary beside it, and ComfyUI's
    Conditioning Concat keeps the dictionary of its first part only.
    """

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], PromptNote]] = {}

    def add(self, tensor: Tensor, note: PromptNote) -> None:
        name = id(tensor)

        def gone(reference: weakref.ref[Tensor]) -> None:
            kept = self._notes.get(name)
            if kept is not None and kept[0] is reference:
                del self._notes[name]

        self._notes[name] = weakref.ref(tensor, gone), note

    def note_at(self, tensor: Tensor, start: int) -> tuple[PromptNote, int] | None:
        """The note of the prompt whose tokens are in a tensor [B, T, C] from ``start`` on, and their number."""
        kept = self._notes.get(id(tensor)) if start == 0 else None
        if kept is not None and kept[0]() is tensor:
            return kept[1], tensor.shape[1]
        # The longest one, because a prompt may begin with another.
        known = [(own, note) for reference, note in list(self._notes.values()) if (own := reference()) is not None]
        for own, note in sorted(known, key=lambda pair: -pair[0].shape[1] if pair[0].ndim == 3 else 0):
            if own.ndim == tensor.ndim == 3 and own.shape[1] and own.shape[2] == tensor.shape[2]:
                part = tensor[:1, start : start + own.shape[1]]
                if part.shape[1] == own.shape[1] and torch.equal(part.to(own), own[:1]):
                    return note, own.shape[1]
        return None

    def __len__(self) -> int:
        return len(self._notes)


ENCODED = EncodedTensors()
