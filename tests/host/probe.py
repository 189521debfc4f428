"""An independent reading of attention: every call of a plain run, as it happened. It knows nothing of the recorder.

What it keeps is on the CPU, as recordings are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goca_core.capture.families import network_of
from goca_core.capture.families.base import Block, Site

from .device import on_cpu
from .helpers import Job, blocks_of

# ComfyUI's modules whose attention calls no override sees, because they do not pass on the options of the model call.
HIDING = ("comfy.ldm.pixart.blocks", "comfy.ldm.hydit.attn_layers", "comfy.ldm.ernie.model")


@dataclass
class Seen:
    """One attention call of one block, as it happened: [rows, tokens, heads * width], and what it fed.

    `text` and `image`: where those tokens are in a joint sequence; in cross- and self-attention there is no `text`, and
    None means all. The image's are those of so many `frames`, which become samples of their own.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    weight: Tensor | None  # of the output projection, where it belongs to the heads alone
    options: dict[str, Any]
    text: slice | None = None
    image: slice | None = None
    mask: Tensor | None = None  # added to the logits
    frames: int = 1
    used: Tensor | None = None  # what the network makes of the result and then projects

    def rows(self, part: slice) -> Seen:
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[part]
        used = None if self.used is None else self.used[part]
        return replace(self, q=self.q[part], k=self.k[part], v=self.v[part], mask=mask, used=used)

    def split(self, x: Tensor) -> Tensor:
        """[B, N, H * d] -> [B, H, N, d] in float64"""
        batch, count, channels = x.shape
        return x.double().reshape(batch, count, self.heads, channels // self.heads).permute(0, 2, 1, 3)

    def chances(self) -> Tensor:
        """Softmax over all keys, for the queries of the image."""
        q, k = self.split(self.q), self.split(self.k)
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        whole = torch.softmax(logits if self.mask is None else logits + self.mask.double(), -1)
        return by_frame(whole if self.image is None else whole[:, :, self.image], self.frames)

    def to_text(self) -> Tensor:
        return self.chances() if self.text is None else self.chances()[..., self.text]

    def to_itself(self) -> Tensor:
        chances = self.chances() if self.image is None else self.chances()[..., self.image]
        if self.frames == 1:
            return chances
        count = chances.shape[-1] // self.frames
        own = [s[..., n % self.frames * count : (n % self.frames + 1) * count] for n, s in enumerate(chances)]
        return torch.stack(own)

    def given(self) -> Tensor:
        """What each head gives to the image, [B, H, N, d]."""
        if self.used is not None:
            return by_frame(self.split(self.used if self.image is None else self.used[:, self.image]), self.frames)
        return self.chances() @ self.split(self.v).repeat_interleave(self.frames, 0)

    def values(self) -> Tensor:
        values = self.split(self.v).repeat_interleave(self.frames, 0)
        return values if self.text is None else values[:, :, self.image]


def by_frame(values: Tensor, frames: int) -> Tensor:
    """[B, H, frames * N, ...] -> [B * frames, H, N, ...]"""
    count = values.shape[2] // frames
    return torch.stack([s[:, f * count : (f + 1) * count] for s in values for f in range(frames)])


@dataclass
class Evaluation:
    """The attention of one model call, by block; joint attention is among both kinds."""

    sigma: float
    chunks: list[int]
    size: tuple[int, int]
    batch: int
    cross: dict[str, Seen] = field(default_factory=dict)
    own: dict[str, Seen] = field(default_factory=dict)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    feature: Tensor | None = None
    frames: int = 1

    def rows(self, place: int) -> Evaluation:
        """What belongs to one of the conditionings of the call."""
        size = self.batch // len(self.chunks)
        part = slice(place * size, (place + 1) * size)
        cross, own = ({name: seen.rows(part) for name, seen in kind.items()} for kind in (self.cross, self.own))
        feature = None
        if self.feature is not None:
            feature = by_frame(self.feature[part][:, None], self.frames)[:, 0]
        return replace(self, cross=cross, own=own, feature=feature)


@dataclass
class Layout:
    """A joint sequence, which is text and then the image if nothing else is said.

    `registers` tokens stand before those of the text, of whose `filling` are no tokens of the prompt; `more` are of the
    prompt although ComfyUI does not call them its context; the image's are `filled` up to a multiple. Or else the
    image is first, and `after` tokens follow those of the text. `gated`: what attention gives is weakened before it
    is projected. `added`: the network adds to it what another call gave. `before`: tokens of a reference image in front
    of the image's own.
    """

    registers: int = 0
    filling: int = 0
    more: int = 0
    filled: int = 1
    image_first: bool = False
    references_first: bool = False
    after: int = 0
    gated: bool = False
    added: bool = False
    before: int = 0

    def places(self, total: int, context: int, count: int, references: int) -> tuple[slice, slice]:
        """Those of the text and of the image."""
        text = context + self.more
        if self.image_first:
            start = total - self.after - text
            assert start == count + references
            return slice(start, start + text), slice(0, count)
        after = (-count) % self.filled + (0 if self.references_first else references)
        start = total - after - count
        before = start - (references if self.references_first else 0) - self.before
        stop = self.registers + text
        assert stop <= before < stop + self.filled
        return slice(self.registers + self.filling, stop), slice(start, start + count)


class Probe:
    """Keeps every attention call of a plain run; it knows nothing of the recorder.

    `calls` holds one Evaluation for each call of the network. `layout`: of a joint sequence.
    """

    def __init__(self, model: Any, **layout: Any) -> None:
        self.plan = blocks_of(model)
        self.calls: list[Evaluation] = []
        self._layout = Layout(**layout)
        self._recent: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        self._hidden = [importlib.import_module(name) for name in HIDING]
        self.model = model.clone()
        options = self.model.model_options.setdefault("transformer_options", {})
        options["optimized_attention_override"] = self._override

    def _override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        # Newer versions of ComfyUI hand over boxes that the kernel empties.
        opened = tuple(each.peek() if hasattr(each, "peek") else each for each in args)
        out = func(*args, **kwargs)
        self._recent.append((opened, kwargs, out))
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [network_of(self.model.model).register_forward_pre_hook(self._begin, with_kwargs=True)]
        for block in self.plan.blocks:
            handles.append(block.cross_attn.out.register_forward_pre_hook(self._taker(block, block.cross_attn)))
            if block.self_attn is not None:
                handles.append(block.self_attn.out.register_forward_pre_hook(self._taker(block, block.self_attn)))
            if block.name == self.plan.reference and self.plan.feature != "attention":
                module = block.cross_attn.query if self.plan.feature == "query" else block.cross_attn.out
                handles.append(module.register_forward_hook(self._take_feature))
        kept = [module.optimized_attention for module in self._hidden]
        for module, function in zip(self._hidden, kept, strict=True):
            module.optimized_attention = partial(self._override, function)
        try:
            yield
        finally:
            for module, function in zip(self._hidden, kept, strict=True):
                module.optimized_attention = function
            for handle in handles:
                handle.remove()

    def _begin(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._options, x = kwargs["transformer_options"], args[0]
        context = args[2] if len(args) > 2 else kwargs.get("context")
        self._length = (kwargs["clip_text"] if context is None else context).shape[1]
        grids = [
            [-(-side // self.plan.patch) for side in latent.shape[-2:]] for latent in kwargs.get("ref_latents") or ()
        ]
        self._references = sum(height * width for height, width in grids)
        chunks = list(self._options["cond_or_uncond"])
        x = x[0] if isinstance(x, list) else x  # a video and its sound
        call = Evaluation(float(self._options["sigmas"][0]), chunks, tuple(x.shape[-2:]), x.shape[0])
        call.frames = -(-x.shape[2] // max(1, self.plan.frame_patch)) if x.ndim == 5 else 1
        self.calls.append(call)

    def _take_feature(self, _module: nn.Module, _args: Any, out: Tensor) -> None:
        call, first = self.calls[-1], self._layout.before
        height, width = (-(-side // self.plan.patch) for side in call.size)
        if self.plan.blocks[0].cross_attn.sequence_first:
            out = out.transpose(0, 1)
        small = self.plan.blocks[0].level == 0 and out.shape[1] >= call.frames * height * width
        call.feature = on_cpu(out[:, first : first + call.frames * height * width] if small else out)

    def _taker(self, block: Block, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            call = self.calls[-1]
            args = (args[0][None], *args[1:]) if args[0].ndim == 2 else args
            # A patch of 2 x 2 cells is one token, and a part of one is one too.
            grid = tuple((side + self.plan.patch - 1) // self.plan.patch for side in call.size)
            count, joint = call.frames * grid[0] * grid[1], block.self_attn is None
            # Beside the joint attention some layers of SD 3.5 have one of the image alone.
            given, kwargs, out = next(seen for seen in reversed(self._recent) if not joint or _keys(*seen) > count)
            self._recent.clear()
            q, k, v, heads = given[:4] if len(given) > 3 else (*given, kwargs["heads"])
            if kwargs.get("skip_reshape"):
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            if kwargs.get("skip_output_reshape"):
                out = out.transpose(1, 2).flatten(2)
            q, k, v = (x.flatten(2) for x in (q, k, v))
            # Where the last tokens alone ask, the others are given queries here, of which nothing is used.
            asking = q.shape[1]
            if joint and asking < k.shape[1] and not self._layout.image_first:
                q, out = (F.pad(x, (0, 0, k.shape[1] - asking, 0)) for x in (q, out))
                args = (args[0][:, -asking:], *args[1:])
            mask = given[4] if len(given) > 4 else kwargs.get("mask")
            mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
            weight = on_cpu(module.weight) if site.weighted else None
            seen = Seen(*on_cpu((q, k, v)), heads, weight, dict(self._options), mask=on_cpu(mask), frames=call.frames)
            options = kwargs.get("transformer_options") or {}
            call.grids[block.name] = (
                tuple(options["activations_shape"][-2:]) if "activations_shape" in options else grid
            )
            if joint:
                text, image = self._layout.places(k.shape[1], self._length, count, self._references)
                seen, used = replace(seen, text=text, image=image), args[0]
                rows = slice(used.shape[1]) if self._layout.image_first else slice(-used.shape[1], None)
                _check_used(out[:, rows], used, self._layout.gated)
                if block.name == self.plan.reference and self.plan.feature == "attention":
                    call.feature = on_cpu(out[:, seen.image])
                call.cross[block.name] = call.own[block.name] = seen
            else:
                used = args[0].transpose(0, 1) if site.sequence_first else args[0]
                if self._layout.gated:
                    seen = replace(seen, used=on_cpu(used))
                    _check_weighed(out, used, heads)
                else:
                    assert torch.equal(out, used) is not (self._layout.added and site is block.cross_attn)
                if call.frames > 1 or self._layout.before:
                    seen = replace(seen, image=slice(self._layout.before, self._layout.before + count))
                getattr(call, "cross" if site is block.cross_attn else "own")[block.name] = seen

        return take

    def run(self, work: Job) -> list[Evaluation]:
        with self.watching():
            work.run(self.model)
        return self.calls

    def positive(self, sigma: float, number: int = 0) -> Evaluation:
        """The rows of a positive conditioning in the first call at a noise level that has them; `number`: which one,
        in the order of the call (ComfyUI puts them in reverse order)."""
        for call in self.calls:
            places = [place for place, kind in enumerate(call.chunks) if kind == 0]
            if abs(call.sigma / sigma - 1) < 1e-4 and places:
                return call.rows(places[number])
        raise AssertionError(f"no call at noise level {sigma}")


def _keys(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Tensor) -> int:
    """The number of keys of a call."""
    return int(args[1].shape[2 if kwargs.get("skip_reshape") else 1])


def _check_used(out: Tensor, used: Tensor, gated: bool) -> None:
    """What attention gave is what the projection takes, perhaps with an MLP's after it."""
    used = used[..., : out.shape[-1]]
    if gated:
        assert torch.all((used.abs() <= out.abs()) & (used * out >= 0)) and not torch.equal(out, used)
    else:
        assert torch.equal(out, used)


def _check_weighed(out: Tensor, used: Tensor, heads: int) -> None:
    """What is projected is what attention gave, each head of each pixel times a number of its own between 0 and 2."""
    given, taken = (x.double().unflatten(-1, (heads, -1)) for x in (out, used))
    factor = (given * taken).sum(-1, keepdim=True) / (given * given).sum(-1, keepdim=True)
    assert torch.allclose(given * factor, taken, atol=1e-4 * float(taken.abs().max()))
    assert factor.min() > 0 and factor.max() < 2 and factor.std() > 0.01
