"""How strongly a masked LoRA acts at each token of a layer, told by the layer's name and the shape of its output.

Image tokens take the mask at their own grid, the pixels of a convolution take it at its size. Text tokens follow a rule
(`Placement`). Whatever has no place in the image (time, pooled text, registers, reference images) takes part only if the
mask covers the whole image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..comfy_graphs import apart_from_allocations
from ..families.base import JointSpans, Plan

# Names of layers that compute text tokens. They decide only where text and image have equally many tokens, and where a
# network pads its text.
_TEXT = re.compile(
    r"(?<![a-z])(txt|text|context|caption|cap_|cond_seq|llm_|y_embedder|llama|byt5|t5)|kv_mapper|mlp_t5|mlpC"
    r"|(?<![a-z_])instruct_|add_[qkv]_proj|to_add_out|(qkv|proj|mlp)_y\b|yproj|(to_[qkv]|to_out|ff)_t\b|w1[qkvo]$"
    r"|(attn2|cross_attn|cross_attention)\.(to_)?(k|v|key|value|[kv]_proj|kv_linear|kv_proj)$|blocks\.1\.block\.attn\.to_[kv]\."
)
# Layers that get the tokens that a router chose, of all samples together.
_ROUTED = re.compile(r"\.experts\.")
# The most tokens by which a network pads its image on its own.
_PADDED = 256


@dataclass(frozen=True)
class Placement:
    """Where one LoRA acts during a run.

    ``image``: [B, F, H, W] in latent cells, 0..1. ``words``: the tokens of the LoRA's phrase by conditioning, or None if it
    has no phrase. With a phrase, its tokens take part in full and no other text does; without one, all text takes part as
    far as the mask covers the image. ``factor``: multiplies everything.
    """

    image: Tensor
    words: Mapping[Any, tuple[int, ...]] | None = None
    factor: float = 1.0

    @property
    def whole(self) -> Tensor:
        """Of which samples the mask covers everything, bool [B]."""
        return self.image.flatten(1).amin(1) >= 1

    @property
    def everywhere(self) -> bool:
        return self.factor == 1 and bool(self.whole.all())

    @property
    def nowhere(self) -> bool:
        return self.factor == 0 or not bool((self.image > 0).any())


@dataclass(frozen=True)
class Chunk:
    """The rows of one conditioning in a model call: its mask [B, F, H, W] where the call sees it, and its text."""

    key: Any
    image: Tensor
    length: int  # of its text, 0 if it is not known


class CallPlaces:
    """The weights of one LoRA in one model call.

    ``texts``: numbers of text tokens that may be in the call. ``around``: tokens of reference images before and after those
    of the image, ``references``: all of them in a joint sequence.
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        chunks: Sequence[Chunk],
        texts: Sequence[int],
        around: tuple[int, int],
        references: int,
        device: torch.device,
    ) -> None:
        self._plan, self._chunks, self._placement = plan, chunks, placement
        self._image = torch.cat([chunk.image for chunk in chunks]).to(device, torch.float32)
        batch = placement.image.shape[0]
        every = placement.image.flatten(1)
        self._whole = placement.whole.float().repeat(len(chunks)).to(device)
        self._share = torch.where(placement.whole, 1.0, every.mean(1)).repeat(len(chunks)).to(device)
        self._some = (every.amax(1) > 0).float().to(device)
        self._any_whole = bool(placement.whole.any())
        self._rows, self._batch = batch * len(chunks), batch
        self._texts = tuple(dict.fromkeys(length for length in texts if length))
        self._around, self._references = around, references
        self._joint = any(block.self_attn is None for block in plan.blocks)
        self._levels = range(max(block.level for block in plan.blocks) + 1)
        self._size = tuple(self._image.shape[-2:])
        self._cache: dict[Any, Tensor | None] = {}
        self.unplaced: set[str] = set()
        """Layers without a place, of which nothing was added."""

    def weight(self, name: str, out: Tensor, conv: bool) -> Tensor | None:
        """What multiplies the LoRA's part of a layer's output; None for nothing."""
        text = _TEXT.search(name) is not None
        if _ROUTED.search(name):
            self.unplaced.add(name)
            return None
        key = (text, conv, out.shape[:1] + out.shape[2:] if conv else out.shape[:-1], out.dtype)
        if key not in self._cache:
            # Kept until the call ends.
            with apart_from_allocations():
                found = self._at_pixels(out) if conv else self._at_tokens(text, out)
                if found is None:
                    found = self._without_place(out, conv)
                self._cache[key] = None if found is None else (found * self._placement.factor).to(out.dtype)
        weight = self._cache[key]
        if weight is None:
            self.unplaced.add(name)
        return weight

    # -- convolutions -------------------------------------------------------------------------------------------------

    def _at_pixels(self, out: Tensor) -> Tensor | None:
        frames = self._image.shape[1]
        if out.ndim == 5:
            weight = self._resized((out.shape[2], out.shape[3], out.shape[4]))[:, None]
        elif out.ndim == 4:
            weight = self._resized((frames, out.shape[2], out.shape[3])).flatten(0, 1)[:, None]
        else:
            return None
        return weight if weight.shape[0] == out.shape[0] else None

    def _resized(self, size: tuple[int, int, int]) -> Tensor:
        """The mask [R, *size] of a layer of another size than the latent: that of a level, or the nearest."""
        for level in (*self._levels, self._levels.stop):  # a UNet has no attention on its coarsest level
            if self._plan.grid(level, *self._size) == size[1:] and self._frames in (size[0], self._image.shape[1]):
                found = self._grid(level)
                return found if found.shape[1] == size[0] else F.interpolate(found[:, None], size, mode="area")[:, 0]
        return F.interpolate(self._image[:, None], size, mode="area")[:, 0]

    # -- tokens ---------------------------------------------------------------------------------------------------------

    def _at_tokens(self, text: bool, out: Tensor) -> Tensor | None:
        shape, rows = out.shape[:-1], self._rows
        # Some networks put the samples last.
        turned = len(shape) > 1 and shape[0] != rows and shape[-1] == rows
        count = shape.numel()
        if count % rows or count == rows:
            return None
        tokens = self._tokens(text, count // rows)
        if tokens is None:
            return None
        return (tokens.T if turned else tokens).reshape(shape)[..., None]

    def _tokens(self, text: bool, count: int) -> Tensor | None:
        """The weights [R, count] of a sequence of so many tokens."""
        before, after = self._around
        level = next((n for n in self._levels if self._count(n) + before + after == count), None)
        if level is not None and not (text and count in self._texts):
            return self._stretched(self._grid(level).flatten(1), before, after)
        if count in self._texts:
            return self._text(count)
        spans = self._spans(count) if self._joint else None
        if spans is not None:
            found = self._rest(count)
            length = spans.text.stop - spans.text.start
            found[:, spans.text] = self._text(length)
            found[:, spans.image] = self._grid(0).flatten(1)
            return found
        if text and self._texts:
            return self._padded(count)
        image = self._count(0)
        if self._is_padded_image(count):
            return self._stretched(self._grid(0).flatten(1), 0, count - image)
        if count % image == 0:  # several vectors for each token, as where a model generates pixels
            return self._grid(0).flatten(1).repeat_interleave(count // image, 1)
        return None

    @property
    def _frames(self) -> int:
        return self._plan.frames(self._image.shape[1])

    def _count(self, level: int) -> int:
        height, width = self._plan.grid(level, *self._size)
        return self._frames * height * width

    def _grid(self, level: int) -> Tensor:
        """The mask [R, frames, h, w] on the token grid of a level; the last token of each axis may be padded."""
        steps = (max(self._plan.frame_patch, 1), *[self._plan.patch * 2**level] * 2)
        mask, pads = self._image[:, None], []
        for side, step in reversed(list(zip(mask.shape[2:], steps, strict=True))):
            pads += [0, -side % step]
        return F.avg_pool3d(F.pad(mask, pads, mode="replicate"), steps)[:, 0]

    def _rest(self, count: int) -> Tensor:
        """Weights [R, count] of tokens without a place."""
        return self._whole[:, None].repeat(1, count)

    def _stretched(self, image: Tensor, before: int, after: int) -> Tensor:
        return torch.cat((self._rest(before), image, self._rest(after)), 1) if before or after else image

    def _spans(self, count: int) -> JointSpans | None:
        image, (before, _) = self._count(0), self._around
        if count <= image:
            return None
        for length in self._texts:
            spans = self._plan.spans(count, length, image, self._references)
            if spans is not None:
                return JointSpans(spans.text, slice(spans.image.start + before, spans.image.stop + before))
        return None

    def _is_padded_image(self, count: int) -> bool:
        """Whether a network that pads text and image has padded the image to so many tokens, before it joins them."""
        image = self._count(0)
        if not (self._joint and self._texts and image < count < image + _PADDED):
            return False
        length = self._texts[0]
        found = ((text, self._plan.spans(count + text, length, image, 0)) for text in range(length, length + _PADDED))
        return any(spans is not None and spans.image.start == text for text, spans in found)

    def _text(self, count: int) -> Tensor:
        """The weights [R, count] of the text of all rows."""
        if self._placement.words is None:
            return self._share[:, None].repeat(1, count)
        found = self._rest(count)
        for number, chunk in enumerate(self._chunks):
            own = self._placement.words.get(chunk.key, ())
            # ComfyUI repeats a short text that shares a call with a longer one.
            repeats = range(0, count, chunk.length) if chunk.length and count % chunk.length == 0 else range(1)
            places = [start + position for start in repeats for position in own if start + position < count]
            rows = slice(number * self._batch, (number + 1) * self._batch)
            found[rows, places] = self._some[:, None]
        return found

    def _padded(self, count: int) -> Tensor:
        """The weights of a text that the network has padded."""
        image = self._count(0)
        length = next((each for each in self._texts if each < count), 0)
        if self._placement.words is None:
            return self._text(count)
        found = self._rest(count)
        if not length:  # one text of several, and it is not known which
            return found
        spans = self._plan.spans(count + image + self._references, length, image, self._references)
        start = 0 if spans is None else spans.text.start
        if spans is not None and spans.image.start < start:
            start -= image + self._references
        start = start if 0 <= start <= count - length else 0
        found[:, start : start + length] = self._text(length)
        return found

    def _without_place(self, out: Tensor, conv: bool) -> Tensor | None:
        """One for samples whose mask covers everything; None if there are none."""
        if not self._any_whole:
            return None
        return _along_rows(self._whole, out, conv)


def _along_rows(values: Tensor, out: Tensor, conv: bool) -> Tensor | None:
    """Values [R] that multiply the rows of an output."""
    rows = values.shape[0]
    if not conv and out.ndim > 2 and out.shape[0] != rows and out.shape[-2] == rows:
        return values.reshape(rows, 1)
    if out.shape[0] % rows:
        return None
    return values.repeat_interleave(out.shape[0] // rows).reshape(-1, *[1] * (out.ndim - 1))


def cropped(image: Tensor, area: Sequence[int] | None, dims: int) -> Tensor:
    """A mask [B, F, H, W] in the area of a conditioning: the sizes along its last axes, then where they begin.

    ``dims``: axes of the latent besides samples and channels.
    """
    if area is None:
        return image
    half = len(area) // 2
    kept = min(half, dims)
    for axis, size, start in _axes(area, half, kept):
        image = image.narrow(axis, start, min(size, image.shape[axis] - start))
    return image


def _axes(area: Sequence[int], half: int, kept: int) -> Iterator[tuple[int, int, int]]:
    for place in range(half - kept, half):
        yield 4 - half + place, int(area[place]), int(area[half + place])
