"""Make the word map of an encoded prompt from its note.

A prompt that all text encoders of a model got is read by the adapter of its tokenizer. Some nodes have a text for each
encoder, or put several texts one after another; then the tokens of each text are read by themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

from ...words.build import Token, build
from ...words.join import join
from ...words.text import fold
from ...words.word_map import WordMap, WordMapError
from ..tokenizers import TOKENIZERS, ming
from ..tokenizers.base import PromptTokens, TokenSpans
from ..tokenizers.bert import bert_spans
from ..tokenizers.clip import clip_spans
from ..tokenizers.qwen import images_template
from ..tokenizers.t5 import t5_spans
from .note import PromptNote
from .texts import Source, ids_of

# The options of tokenizers by which nodes show something besides the text: images, and for MiniMax-H3 videos and sounds too.
SHOWN = ("images", "minimax_ref_items")
# The sign for an image in a text, of Qwen and of others, and what Qwen's signs look like.
_IMAGE, _SIGN = 151655, re.compile(r"<\|.*\|>|</?image>")
_SIGNS = {"MingImageTokenizer": ming.IMAGE}


class Encoder(NamedTuple):
    """A text encoder: the key of its tokens, its name in the tokenizer, its name in the model, and its kind of tokens."""

    key: str
    tokenizer: str
    model: str
    spans: TokenSpans


_L, _G, _H = (Encoder(key, f"clip_{key}", f"clip_{key}", clip_spans) for key in "lgh")
# The encoders of these tokenizers may have different texts. Those in one tuple give the same positions, of the next tuple
# the positions follow.
_GROUPS: dict[str, tuple[tuple[Encoder, ...], ...]] = {
    "SD1Tokenizer": ((_L,),),
    "SD2Tokenizer": ((_H,),),
    "StableCascadeTokenizer": ((_G,),),
    "SDXLTokenizer": ((_L, _G),),
    "SD3Tokenizer": ((_L, _G), (Encoder("t5xxl", "t5xxl", "t5xxl", t5_spans),)),
    "HyditTokenizer": (
        (Encoder("hydit_clip", "hydit_clip", "hydit_clip", bert_spans),),
        (Encoder("mt5xl", "mt5xl", "mt5xl", t5_spans),),
    ),
    "FluxTokenizer": ((Encoder("t5xxl", "t5xxl", "t5xxl", t5_spans),),),
}
# Of these, one encoder gives the positions; another gives at most a pooled vector.
_ALONE = {"FluxTokenizer": "t5xxl", "HunyuanVideoTokenizer": "llama"}


class _ReadClip:
    """What an adapter needs of a CLIP, which gives the same tokens again."""

    def __init__(self, note: PromptNote, options: Mapping[str, Any]) -> None:
        images = options.get("images", 0)
        self.sign = _SIGNS.get(type(note.tokenizer).__name__, _IMAGE)
        shown = ming.template if self.sign == ming.IMAGE else images_template
        template = options.get("llama_template") or shown(note.tokenizer, images)
        self.tokenizer = note.tokenizer if template is None else _Templated(note.tokenizer, template)
        self.tokenizer_options = options.get("tokenizer_options", {})
        self.made: dict[str, Any] = {}
        self._tokenizer = note.tokenizer
        self._options = {**options, "images": [None] * images} if "images" in options else options
        if note.encoders is not None:
            self.cond_stage_model = SimpleNamespace(**note.encoders)

    def tokenize(self, text: str, return_word_ids: bool = False) -> dict[str, Any]:
        made: dict[str, Any] = self._tokenizer.tokenize_with_weights(text, return_word_ids, **self._options)
        self.made = {key: tuple(map(ids_of, chunks)) for key, chunks in made.items() if isinstance(chunks, list)}
        # An image stands where its sign was in the text.
        images = {key: [[self._as_sign(entry) for entry in chunk] for chunk in made[key]] for key in self.made}
        return {**made, **images}

    def _as_sign(self, entry: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.sign, *entry[1:]) if isinstance(entry[0], dict) else entry


class _Templated:
    """A tokenizer with the template that a node gave it."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer, self.llama_template = tokenizer, template

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def read(note: PromptNote) -> WordMap:
    """The word map of an encoded prompt. Raises WordMapError, or whatever the tokenizer raises, if there is none."""
    name = type(note.tokenizer).__name__
    if name not in TOKENIZERS:
        raise WordMapError(f"the tokenizer {name} is unknown")
    alone = _ALONE.get(name)
    keys = [alone] if alone is not None and alone in note.parts else list(note.parts)
    sources = [part.source for key in keys for part in note.parts[key]]
    if sources and all(len(note.parts[key]) == 1 for key in keys) and len({source.text for source in sources}) == 1:
        return _whole(note, TOKENIZERS[name], sources[0], keys)
    if name not in _GROUPS or not sources:
        raise WordMapError(f"the tokens come from several texts: {[source.text for source in sources]}")
    return _by_parts(note, _GROUPS[name])


def _whole(note: PromptNote, adapter: Callable[[Any, str], WordMap], source: Source, keys: list[str]) -> WordMap:
    clip = _ReadClip(note, source.options)
    words = adapter(clip, source.text)
    if not clip.made:
        clip.tokenize(source.text)
    if any(clip.made.get(key) != note.ids[key] for key in keys):
        raise WordMapError("the tokens are no longer those of the text")
    return after_images(words, note.length, clip.sign) if any(source.options.get(name) for name in SHOWN) else words


def after_images(words: WordMap, length: int, sign: int = _IMAGE) -> WordMap:
    """The words after the images of a prompt, in a conditioning of `length` tokens.

    words: with one token for each image, its ``sign``, of which the encoder makes as many as its size asks for. What is before the last
    image is no part of what a user has typed in most nodes, and where it is depends on the sizes.
    """
    images = [piece.position for piece in words.pieces if piece.token_id == sign]
    if not images:
        return words
    signs = {piece.position for piece in words.pieces if _SIGN.fullmatch(piece.text)}
    more, first = length - words.length, images[-1] + 1
    # Qwen-Image 2.1 leaves images out, because its network gets them otherwise.
    if more < 0 and more != -len(images):
        raise WordMapError("there are fewer vectors than tokens")
    kept = [
        i for i, word in enumerate(words.words) if min(word.positions) >= first and not signs.issuperset(word.positions)
    ]
    place = {old: new for new, old in enumerate(kept)}
    own, seen = [], Counter[str]()
    for i in kept:
        word = words.words[i]
        seen[fold(word.text)] += 1
        positions = tuple(position + more for position in word.positions)
        own.append(replace(word, positions=positions, occurrence=seen[fold(word.text)]))
    pieces = []
    for piece in words.pieces:
        if more < 0 and piece.position in images:
            continue
        before = -sum(image < piece.position for image in images) if more < 0 else 0
        at = piece.position + (more if piece.position >= first else before)
        own_word = None if piece.word is None else place.get(piece.word)
        kind = "other" if own_word is None and piece.kind in ("word", "embedding") else piece.kind
        pieces.append(replace(piece, position=at, word=own_word, kind=kind))
    special, pad = (tuple(p.position for p in pieces if p.kind in kinds) for kinds in (("start", "end"), ("pad",)))
    return replace(words, length=length, words=tuple(own), pieces=tuple(pieces), special=special, pad=pad)


def _by_parts(note: PromptNote, groups: tuple[tuple[Encoder, ...], ...]) -> WordMap:
    """Read each text by itself, at all positions that it has."""
    tokens: dict[str, list[Token]] = {}
    plains: dict[str, PromptTokens] = {}
    start = 0
    for group in groups:
        present = [encoder for encoder in group if _has(note, encoder) and note.ids.get(encoder.key)]
        # ComfyUI truncates the longer one.
        length = min((sum(map(len, note.ids[encoder.key])) for encoder in present), default=0)
        for encoder in present:
            for text, prompt, offset in _prompts(note, encoder):
                plains[text] = prompt
                own = tokens.setdefault(text, [])
                # Two encoders with the same text have the same words at the same positions, but not the same padding.
                known = {(token.position, token.kind) for token in own}
                own += [
                    token
                    for token in prompt.tokens(start + offset)
                    if token.position < start + length and (token.position, token.kind) not in known
                ]
        start += length
    maps = []
    for text, own in tokens.items():
        prompt = plains[text]
        maps.append((0, build(text, prompt.plain, _named(groups), start, own, prompt.breaks)))
    if not start:
        raise WordMapError("no text encoder got any tokens")
    return join(maps, start)


def _prompts(note: PromptNote, encoder: Encoder) -> list[tuple[str, PromptTokens, int]]:
    """The texts of one encoder: each with its tokens, and how many tokens are before it."""
    found, first, offset = [], 0, 0
    for part in note.parts[encoder.key]:
        clip = _ReadClip(note, part.source.options)
        chunks = clip.tokenize(part.source.text, return_word_ids=True)[encoder.key]
        own = note.ids[encoder.key][first : first + part.chunks]
        if clip.made[encoder.key] != own:
            raise WordMapError("the tokens are no longer those of the text")
        sub = getattr(note.tokenizer, encoder.tokenizer)
        found.append((part.source.text, PromptTokens(sub, chunks, part.source.text, encoder.spans), offset))
        first, offset = first + part.chunks, offset + sum(map(len, own))
    return found


def _has(note: PromptNote, encoder: Encoder) -> bool:
    return note.encoders is None or note.encoders.get(encoder.model) is not None


def _named(groups: tuple[tuple[Encoder, ...], ...]) -> str:
    return "+".join(encoder.key for group in groups for encoder in group)
