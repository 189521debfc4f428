"""Note the prompt of every conditioning that ComfyUI's CLIP encodes, whichever node asks for it.

A pass-through around `CLIP.tokenize`, `CLIP.encode_from_tokens` and `CLIP.encode_from_tokens_scheduled` calls what was
there, and returns its result with one more entry in the dictionaries of the conditioning. It is installed once, when
ComfyUI loads the pack, unless the environment variable ``GOCA_WORDS=0`` is set.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .note import ENCODED, KEY, PromptNote
from .read import read
from .texts import Source, Texts, ids_of

_log = logging.getLogger("goca")
_lock = threading.Lock()
_OURS = "goca_words"
_ENCODERS = ("clip_l", "clip_g", "clip_h", "t5xxl", "llama", "byt5_small", "hydit_clip", "mt5xl")
_texts = Texts()
_originals: dict[str, Callable[..., Any]] = {}
_at_work = threading.Event()


def install() -> bool:
    """Install the pass-through, unless it is there or switched off. Returns whether it is at work now."""
    from comfy.sd import CLIP

    if os.environ.get("GOCA_WORDS", "1").strip().lower() in ("0", "off", "false", "no"):
        return False
    with _lock:
        for name, wrap in _WRAPPERS.items():
            found = getattr(CLIP, name, None)
            # A wrapper that another pack has put around ours has its mark too, if it was made by functools.wraps.
            if found is not None and not getattr(found, _OURS, False) and name not in _originals:
                wrapper = functools.wraps(found)(wrap(found))
                setattr(wrapper, _OURS, True)
                _originals[name] = found
                setattr(CLIP, name, wrapper)
        _at_work.set()
    return True


def remove() -> None:
    """Take the pass-through away. Where another pack has wrapped it, it stays and does nothing."""
    from comfy.sd import CLIP

    with _lock:
        _at_work.clear()
        for name, original in list(_originals.items()):
            if getattr(getattr(CLIP, name), "__wrapped__", None) is original:
                setattr(CLIP, name, original)
                del _originals[name]


def _tokenize(original: Callable[..., Any]) -> Callable[..., Any]:
    def tokenize(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = original(self, text, *args, **kwargs)
        if _at_work.is_set() and isinstance(text, str):
            _quietly(_remember, self, text, tokens, kwargs)
        return tokens

    return tokenize


def _encode(original: Callable[..., Any]) -> Callable[..., Any]:
    def encode_from_tokens(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        # Before encoding, which may change the tokens.
        note = _quietly(_note, self, tokens) if _at_work.is_set() else None
        out = original(self, tokens, *args, **kwargs)
        if note is not None:
            _quietly(_leave, note, out)
        return out

    return encode_from_tokens


def _encode_scheduled(original: Callable[..., Any]) -> Callable[..., Any]:
    def encode_from_tokens_scheduled(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, tokens, *args, **kwargs)
        if _at_work.is_set():
            _quietly(_note_each, self, tokens, out)
        return out

    return encode_from_tokens_scheduled


_WRAPPERS = {
    "tokenize": _tokenize,
    "encode_from_tokens": _encode,
    "encode_from_tokens_scheduled": _encode_scheduled,
}


def _quietly(work: Callable[..., Any], *args: Any) -> Any:
    """What a function returns; None if it fails, because a prompt must be encoded all the same."""
    try:
        return work(*args)
    except Exception:
        _log.debug("GoCA: the words of a prompt are unknown.", exc_info=True)
        return None


def _remember(clip: Any, text: str, tokens: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    options = {key: value for key, value in kwargs.items() if key != "return_word_ids"}
    if isinstance(options.get("images"), list):
        options["images"] = len(options["images"])  # only how many
    if isinstance(options.get("minimax_ref_items"), list):
        options["minimax_ref_items"] = [_sizes(item) for item in options["minimax_ref_items"]]
    elif any(not isinstance(value, str | bool | int | float | dict | None) for value in options.values()):
        return  # tensors and the like are not kept
    own = getattr(clip, "tokenizer_options", None) or {}
    if own:
        options["tokenizer_options"] = {**own, **options.get("tokenizer_options", {})}
    _texts.remember(type(clip.tokenizer), tokens, Source(text, options))


def _sizes(item: Mapping[str, Any]) -> dict[str, Any]:
    """An image, video or sound that a prompt refers to, with tensors that have a size and no values."""
    return {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in item.items()}


def _note(clip: Any, tokens: Mapping[str, Any]) -> PromptNote | None:
    """A note of these tokens, if all of their texts are known."""
    chunks = {key: value for key, value in tokens.items() if isinstance(value, list)}
    parts = {key: _texts.parts(type(clip.tokenizer), key, value) for key, value in chunks.items()}
    known = {key: part for key, part in parts.items() if part is not None}
    if len(known) < len(parts) or not any(known.values()):
        return None
    ids = {key: tuple(map(ids_of, own)) for key, own in chunks.items()}
    model = getattr(clip, "cond_stage_model", None)
    # Which encoders there are. The model itself is not kept.
    encoders = {name: getattr(model, name) is not None or None for name in _ENCODERS if hasattr(model, name)}
    return PromptNote(clip.tokenizer, None if model is None else encoders, known, ids, read)


def _note_each(clip: Any, tokens: Mapping[str, Any], conditioning: list[Any]) -> None:
    """Leave a note on a conditioning that has none: of a CLIP whose hooks have a schedule, ComfyUI encodes it differently."""
    missing = [entry for entry in conditioning if KEY not in entry[1]]
    note = _note(clip, tokens) if missing else None
    if note is not None:
        for cond, extra in missing:
            note.length = cond.shape[1]
            ENCODED.add(cond, note)
            extra[KEY] = note


def _leave(note: PromptNote, out: Any) -> None:
    """Leave the note on what encode_from_tokens returned: a dictionary, a tensor, or a tensor and the pooled one."""
    tensor = out.get("cond") if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    if isinstance(tensor, Tensor):
        # Ming-Image has its own tokens beside those of the conditioning.
        direct = out.get("direct_context") if isinstance(out, dict) else None
        note.length = tensor.shape[1] + (direct.shape[-2] if isinstance(direct, Tensor) else 0)
        ENCODED.add(tensor, note)
    if isinstance(out, dict):
        out[KEY] = note
