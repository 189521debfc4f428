"""What the tests of recording share: ways to sample, an independent probe of attention, and word maps without a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from goca_core.attention import aggregate
from goca_core.capture.family import Plan, find_family, network_of
from goca_core.wordbuild import Token, build
from goca_core.words import WordMap

from . import tiny


def words_of(text: str, length: int = 77) -> WordMap:
    """The word map of a CLIP to which every word is one token."""
    tokens = [Token(0, 49406, "<start>", "start")]
    position = 0
    for number, word in enumerate(text.split(), start=1):
        start = text.index(word, position)
        position = start + len(word)
        tokens.append(Token(number, number, word, "word", start, position))
    end = len(tokens)
    tokens.append(Token(end, 49407, "<end>", "end"))
    tokens += [Token(place, 49407, "<end>", "pad") for place in range(end + 1, length)]
    return build(text, text, "clip-l", length, tokens)


# -- sampling -------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One sampling run, as a node of the host does it."""

    positive: Any
    negative: Any
    latent: Tensor
    node: str = "KSampler"
    sampler: str = "euler"
    scheduler: str = "normal"
    steps: int = 3
    cfg: float = 7.0
    seed: int = 5

    def run(self, model: Any) -> dict[str, Tensor]:
        """The LATENT that comes out."""
        with torch.inference_mode():
            result: dict[str, Tensor] = getattr(self, f"_{self.node}")(model)
        return result

    def _KSampler(self, model: Any) -> Any:
        import nodes

        return nodes.KSampler().sample(
            model,
            self.seed,
            self.steps,
            self.cfg,
            self.sampler,
            self.scheduler,
            self.positive,
            self.negative,
            self._start(),
        )[0]

    def _KSamplerAdvanced(self, model: Any) -> Any:
        import nodes

        return nodes.KSamplerAdvanced().sample(
            model, "enable", self.seed, self.steps, self.cfg, self.sampler, self.scheduler, self.positive, self.negative,
            self._start(), 0, 10000, "disable",
        )[0]  # fmt: skip

    def _SamplerCustomAdvanced(self, model: Any) -> Any:
        import comfy_extras.nodes_custom_sampler as custom

        noise = custom.RandomNoise.execute(self.seed).result[0]
        guider = custom.CFGGuider.execute(model, self.positive, self.negative, self.cfg).result[0]
        sampler = custom.KSamplerSelect.execute(self.sampler).result[0]
        sigmas = custom.BasicScheduler.execute(model, self.scheduler, self.steps, 1.0).result[0]
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, self._start()).result[0]

    def _start(self) -> dict[str, Tensor]:
        return {"samples": self.latent.clone()}


def job(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] = (16, 24), **options: Any) -> Job:
    """A run with random positive (seed 1) and negative (seed 2) text."""
    defaults = {"positive": built.conditioning(seed=1), "negative": built.conditioning(seed=2)}
    return Job(**{**defaults, "latent": tiny.latent(built.channels, batch, *size), **options})


def blocks_of(model: Any) -> Plan:
    return find_family(model.model).plan(network_of(model.model))


def with_lora(model: Any, seed: int = 9) -> Any:
    """A copy of a MODEL whose text attention is patched as a LoRA node does it."""
    generator = torch.Generator().manual_seed(seed)
    patched = model.clone()
    patches = {}
    for name, weight in model.model.state_dict().items():
        if name.endswith(("attn2.to_out.0.weight", "attn2.to_q.weight")):
            patches[name] = ("diff", (torch.randn(weight.shape, generator=generator) * 0.3,))
    assert len(patches) > 4
    assert len(patched.add_patches(patches, 0.8)) == len(patches)
    return patched


def count_hooks(model: Any) -> int:
    """Forward hooks of every kind on every module."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


def global_map(recorder: Any, latent: Tensor) -> Tensor:
    """The global map of what a recorder kept for a latent, by the default methods."""
    return aggregate(recorder.collect(latent)).maps


# -- an independent look at attention ---------------------------------------------------------------------------------


@dataclass
class Seen:
    """One attention call of one block, as it happened: [rows, tokens, heads * width], and what it fed."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    weight: Tensor
    options: dict[str, Any]

    def rows(self, chunk: int) -> Seen:
        size = self.q.shape[0] // len(self.options["cond_or_uncond"])
        part = slice(chunk * size, (chunk + 1) * size)
        return Seen(self.q[part], self.k[part], self.v[part], self.heads, self.weight, self.options)

    def split(self, x: Tensor) -> Tensor:
        """[B, N, H * d] -> [B, H, N, d] in float64"""
        batch, count, channels = x.shape
        return x.double().reshape(batch, count, self.heads, channels // self.heads).permute(0, 2, 1, 3)

    def chances(self) -> Tensor:
        q, k = self.split(self.q), self.split(self.k)
        return torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)


@dataclass
class Evaluation:
    """The attention of one model call, by block."""

    sigma: float
    chunks: list[int]
    cross: dict[str, Seen] = field(default_factory=dict)
    own: dict[str, Seen] = field(default_factory=dict)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)


class Probe:
    """Keeps every attention call of a plain run; it knows nothing of the recorder.

    `calls` holds one Evaluation for each call of the network.
    """

    def __init__(self, model: Any) -> None:
        self.plan = blocks_of(model)
        self.calls: list[Evaluation] = []
        self._last: tuple[tuple[Any, ...], dict[str, Any], Tensor] | None = None
        self.model = model.clone()
        options = self.model.model_options.setdefault("transformer_options", {})
        options["optimized_attention_override"] = self._override

    def _override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        self._last = (args, kwargs, out)
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [network_of(self.model.model).register_forward_pre_hook(self._begin, with_kwargs=True)]
        for block in self.plan.blocks:
            for module, kind in ((block.own.out, "own"), (block.text.out, "cross")):
                handles.append(module.register_forward_pre_hook(self._taker(block.name, kind)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        options = kwargs["transformer_options"]
        self.calls.append(Evaluation(float(options["sigmas"][0]), list(options["cond_or_uncond"])))

    def _taker(self, name: str, kind: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert self._last is not None
            (q, k, v, heads), kwargs, out = self._last[0][:4], self._last[1], self._last[2]
            assert torch.equal(out, args[0])
            options = dict(kwargs["transformer_options"])
            seen = Seen(q.clone(), k.clone(), v.clone(), heads, module.weight.detach().clone(), options)
            getattr(self.calls[-1], kind)[name] = seen
            self.calls[-1].grids[name] = tuple(options["activations_shape"][-2:])

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
                place = places[number]
                picked = Evaluation(call.sigma, call.chunks, grids=call.grids)
                picked.cross = {name: seen.rows(place) for name, seen in call.cross.items()}
                picked.own = {name: seen.rows(place) for name, seen in call.own.items()}
                return picked
        raise AssertionError(f"no call at noise level {sigma}")


def names(items: Iterable[Any]) -> list[str]:
    return [item.name for item in items]


def stub_guider(**conds: Any) -> SimpleNamespace:
    """Just enough of a guider for a run that never reaches a model."""
    patcher = SimpleNamespace(
        get_model_object=lambda _name: SimpleNamespace(percent_to_sigma=lambda share: 10 * (1 - share))
    )
    return SimpleNamespace(conds=conds, model_patcher=patcher)
