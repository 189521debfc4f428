"""The part of a LoRA that changes the text encoder: on the whole prompt, or on the words of its phrase alone.

A text encoder mixes the words of a prompt. So the prompt is encoded twice, without and with the LoRA, and the tokens of
the phrase are taken from the second. A prompt without the phrase, such as a negative one, stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...words.match import PhraseError
from ...words.word_map import WordMap, WordMapError, resolve
from ..conditioning import words_of
from ..encoded.note import KEY
from .file import read


def clip_with_lora(clip: Any, file: str | Path, strength: float, phrase: str = "") -> Any:
    """A copy of a CLIP with a LoRA file, on the words of a phrase alone if there is one.

    Raises LoRAError for a file that is none.
    """
    import comfy.sd

    tensors, metadata = read(file)
    if strength == 0:
        return clip
    changed = comfy.sd.load_lora_for_models(None, clip, dict(tensors), 0.0, strength, lora_metadata=metadata)[1]
    return changed if not phrase.strip() else _for_phrase(clip, changed, phrase.strip())


def _for_phrase(clip: Any, changed: Any, phrase: str) -> Any:
    """A CLIP that encodes as ``clip``, and the tokens of a phrase as ``changed``."""
    kind = type(clip)

    class PhraseCLIP(kind):  # type: ignore[misc, valid-type]
        """Both text encoders as one. Copies of it, which other nodes make, are the same."""

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            made = kind.clone(self, *args, **kwargs)
            made.__class__ = PhraseCLIP
            return made

        def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
            # Encoding may take tokens out of what it is given.
            again = {key: list(value) if isinstance(value, list) else value for key, value in tokens.items()}
            plain = kind.encode_from_tokens_scheduled(self, again, *args, **kwargs)
            other = changed.clone()
            other.layer_idx, other.tokenizer_options = self.layer_idx, self.tokenizer_options
            return mixed(plain, other.encode_from_tokens_scheduled(tokens, *args, **kwargs), phrase)

    made = clip.clone()
    made.__class__ = PhraseCLIP
    return made


def mixed(plain: list[Any], changed: list[Any], phrase: str) -> list[Any]:
    """A CONDITIONING of which the tokens of a phrase come from another encoding of the same prompt."""
    result = []
    for (tensor, extra), (other, _) in zip(plain, changed, strict=True):
        words = words_of(tensor, extra)
        tokens = [] if words is None else _tokens(phrase, words)
        if tokens:
            tensor = _replaced(tensor, other, tokens)
            extra = {**extra, KEY: words}
        result.append([tensor, extra])
    return result


def _tokens(phrase: str, words: WordMap) -> list[int]:
    try:
        return sorted({token for each in resolve(phrase, words) for token in each.tokens})
    except (PhraseError, WordMapError):
        return []


def _replaced(tensor: Tensor, other: Tensor, tokens: list[int]) -> Tensor:
    made = tensor.clone()
    # Some models get vectors of a second encoder at their end, beside this tensor.
    own = [token for token in tokens if token < tensor.shape[1]]
    made[:, own] = other[:, own].to(made)
    return made
