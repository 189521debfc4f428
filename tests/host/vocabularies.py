"""Small vocabularies of the makes that come inside the weights of real text encoders."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import comfy.text_encoders.flux as flux
import pytest
import sentencepiece
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

LINES = ["a red cat sits on the wooden table", "a blue dog and a green bird in the grass"]


def gemma() -> torch.Tensor:
    """Gemma's vocabulary comes inside its weights, so a small one of the same make is trained."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=written, vocab_size=400, hard_vocab_limit=False,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


def gemma4() -> torch.Tensor:
    """Gemma 4's vocabulary is a file of the tokenizers library: pieces with a sign for spaces, and bytes for what is left."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{number:02X}>" for number in range(256))]
    made.train_from_iterator(
        LINES * 20,
        tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=special, max_token_length=8),
    )
    return torch.frombuffer(bytearray(made.to_str().encode()), dtype=torch.uint8)


def tekken() -> torch.Tensor:
    """A small vocabulary of the Mistral family: special tokens, all bytes, and a few longer tokens."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{number}>" for number in range(5, 17))]
    names += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    pieces = [bytes([number]) for number in range(256)]
    for word in (" red", " cat", " on", "table", " photorealistic"):
        pieces += [word[:end].encode() for end in range(2, len(word) + 1)]
    entries = [{"rank": r, "token_bytes": base64.b64encode(p).decode()} for r, p in enumerate(dict.fromkeys(pieces))]
    special = [{"rank": rank, "token_str": name} for rank, name in enumerate(names)]
    config = {"default_vocab_size": len(entries) + len(special)}
    data = json.dumps({"config": config, "vocab": entries, "special_tokens": special})
    return torch.frombuffer(bytearray(data.encode()), dtype=torch.uint8)


def mistral(make: Any) -> Any:
    """A tokenizer of ComfyUI with a small vocabulary of the Mistral family."""
    data = {"tekken_model": tekken()}
    try:
        return make(tokenizer_data=data)
    except TypeError:
        # ComfyUI hands such a vocabulary to a function of the library that newer versions of it call otherwise. What
        # it would make of it is made here.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flux, "load_mistral_tokenizer", lambda _data: {})
            patch.setattr(flux, "MistralTokenizerClass", Mistral)
            return make(tokenizer_data=data)


class Mistral:
    @staticmethod
    def from_pretrained(_path: str, **_options: Any) -> Any:
        content = json.loads(bytes(tekken().tolist()))
        signs = bytes_to_unicode()
        special = [entry["token_str"] for entry in content["special_tokens"]]
        pieces = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"]]
        spelt = ["".join(signs[number] for number in piece) for piece in pieces]
        merges = [(piece[:-1], piece[-1]) for piece in spelt if len(piece) > 1]
        vocabulary = {piece: number for number, piece in enumerate([*special, *spelt])}
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        made.add_special_tokens(special)
        return PreTrainedTokenizerFast(tokenizer_object=made)


def bytes_to_unicode() -> dict[int, str]:
    """The sign that byte-level vocabularies have for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in plain]
    return {**{n: chr(n) for n in plain}, **{n: chr(256 + place) for place, n in enumerate(others)}}


def harmony() -> torch.Tensor:
    """A small vocabulary of the make of GPT-OSS's."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|message|>", "<|end|>", "<|channel|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(LINES * 20, trainer)
    return torch.frombuffer(bytearray(made.to_str().encode()), dtype=torch.uint8)
