"""An independent look at attention: every call of a plain run, as it happened. It knows nothing of the recorder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from goca_core.capture.family import Block, Site, find_family, network_of

from .helpers import Job, blocks_of


@dataclass
class Seen:
    """One attention call of one block, as it happened: [rows, tokens, heads * width], and what it fed.

    `text` and `image`: where those tokens are in a joint sequence; None in cross- and self-attention.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    weight: Tensor | None  # of the output projection, where it belongs to the heads alone
    options: dict[str, Any]
    text: slice | None = None
    image: slice | None = None

    def rows(self, part: slice) -> Seen:
        return replace(self, q=self.q[part], k=self.k[part], v=self.v[part])

    def split(self, x: Tensor) -> Tensor:
        """[B, N, H * d] -> [B, H, N, d] in float64"""
        batch, count, channels = x.shape
        return x.double().reshape(batch, count, self.heads, channels // self.heads).permute(0, 2, 1, 3)

    def chances(self) -> Tensor:
        """Softmax over all keys, for the queries of the picture."""
        q, k = self.split(self.q), self.split(self.k)
        whole = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        return whole if self.image is None else whole[:, :, self.image]

    def to_text(self) -> Tensor:
        return self.chances() if self.text is None else self.chances()[..., self.text]

    def to_itself(self) -> Tensor:
        return self.chances() if self.image is None else self.chances()[..., self.image]

    def given(self) -> Tensor:
        """What each head gives to the picture, [B, H, N, d]."""
        return self.chances() @ self.split(self.v)

    def values(self) -> Tensor:
        values = self.split(self.v)
        return values if self.image is None else values[:, :, self.image]


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

    def rows(self, place: int) -> Evaluation:
        """What belongs to one of the conditionings of the call."""
        size = self.batch // len(self.chunks)
        part = slice(place * size, (place + 1) * size)
        cross, own = ({name: seen.rows(part) for name, seen in kind.items()} for kind in (self.cross, self.own))
        feature = self.feature[part] if self.feature is not None else None
        return replace(self, cross=cross, own=own, feature=feature)


class Probe:
    """Keeps every attention call of a plain run; it knows nothing of the recorder.

    `calls` holds one Evaluation for each call of the network. Of a joint sequence: `registers` tokens stand before those
    of the text, and the picture's are `filled` up to a multiple.
    """

    def __init__(self, model: Any, registers: int = 0, filled: int = 1) -> None:
        self.plan = blocks_of(model)
        self.calls: list[Evaluation] = []
        self._registers, self._filled = registers, filled
        self._recent: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        self._hidden = [importlib.import_module(name) for name in find_family(model.model).hidden]
        self.model = model.clone()
        options = self.model.model_options.setdefault("transformer_options", {})
        options["optimized_attention_override"] = self._override

    def _override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        self._recent.append((args, kwargs, out))
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [network_of(self.model.model).register_forward_pre_hook(self._begin, with_kwargs=True)]
        for block in self.plan.blocks:
            handles.append(block.text.out.register_forward_pre_hook(self._taker(block, block.text)))
            if block.own is not None:
                handles.append(block.own.out.register_forward_pre_hook(self._taker(block, block.own)))
            if block.name == self.plan.reference and self.plan.feature != "attention":
                module = block.text.query if self.plan.feature == "query" else block.text.out
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
        self._length = (args[2] if len(args) > 2 else kwargs["context"]).shape[1]
        chunks = list(self._options["cond_or_uncond"])
        self.calls.append(Evaluation(float(self._options["sigmas"][0]), chunks, tuple(x.shape[-2:]), x.shape[0]))

    def _take_feature(self, _module: nn.Module, _args: Any, out: Tensor) -> None:
        height, width = (-(-side // self.plan.patch) for side in self.calls[-1].size)
        joint = all(block.own is None for block in self.plan.blocks)
        self.calls[-1].feature = out[:, : height * width].clone() if joint else out.clone()

    def _taker(self, block: Block, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            call = self.calls[-1]
            # A patch of 2 x 2 cells is one token, and a part of one is one too.
            grid = tuple((side + self.plan.patch - 1) // self.plan.patch for side in call.size)
            count, joint = grid[0] * grid[1], block.own is None
            # Beside the joint attention some layers of SD 3.5 have one of the picture alone.
            given, kwargs, out = next(seen for seen in reversed(self._recent) if not joint or seen[2].shape[1] > count)
            self._recent.clear()
            q, k, v, heads = given[:4] if len(given) > 3 else (*given, kwargs["heads"])
            if kwargs.get("skip_reshape"):
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            q, k, v = (x.flatten(2) for x in (q, k, v))
            weight = module.weight.detach().clone() if site.weighted else None
            seen = Seen(q.clone(), k.clone(), v.clone(), heads, weight, dict(self._options))
            options = kwargs.get("transformer_options") or {}
            call.grids[block.name] = (
                tuple(options["activations_shape"][-2:]) if "activations_shape" in options else grid
            )
            if joint:
                behind = (-count) % self._filled + sum(options.get("reference_image_num_tokens", []))
                start = q.shape[1] - behind - count
                text = slice(self._registers, self._registers + self._length)
                assert text.stop <= start < text.stop + self._filled
                seen = replace(seen, text=text, image=slice(start, start + count))
                used = args[0]
                assert torch.equal(out[:, -used.shape[1] :], used[..., : out.shape[-1]])
                if block.name == self.plan.reference and self.plan.feature == "attention":
                    call.feature = out[:, seen.image].clone()
                call.cross[block.name] = call.own[block.name] = seen
            else:
                assert torch.equal(out, args[0])
                getattr(call, "cross" if site is block.text else "own")[block.name] = seen

        return take

    def run(self, work: Job) -> list[Evaluation]:
        with self.watching():
            work.run(self.model)
        return self.calls

    def positive(self, sigma: float, number: int = 0) -> Evaluation:
        """The rows of a positive conditioning in the first call at a noise level that has them; `number`: which one,
        in the order of the call (the host puts them in reverse order)."""
        for call in self.calls:
            places = [place for place, kind in enumerate(call.chunks) if kind == 0]
            if abs(call.sigma / sigma - 1) < 1e-4 and places:
                return call.rows(places[number])
        raise AssertionError(f"no call at noise level {sigma}")
