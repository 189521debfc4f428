"""What the tests of recording share: ways to sample, and word maps without a CLIP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.capture.families import plan_of
from goca_core.capture.families.base import Plan
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record
from goca_core.words.build import Token, build
from goca_core.words.word_map import WordMap

from . import tiny
from .device import ACCELERATED, RUNS, repeated


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
    """One sampling run, as a node of ComfyUI does it."""

    positive: Any
    negative: Any
    latent: Any
    node: str = "KSampler"
    sampler: str = "euler"
    scheduler: str = "normal"
    steps: int = 3
    cfg: float = 7.0
    seed: int = 5
    # The steps of the schedule that run, for nodes that can run a part of it.
    first: int = 0
    last: int = 10000
    mask: Any = None  # of the noise

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
            model, "disable" if self.first else "enable", self.seed, self.steps, self.cfg, self.sampler, self.scheduler,
            self.positive, self.negative, self._start(), self.first, self.last,
            "enable" if self.last < self.steps else "disable",
        )[0]  # fmt: skip

    def _SamplerCustomAdvanced(self, model: Any) -> Any:
        return self.outputs(model)[0]

    def outputs(self, model: Any) -> Any:
        """Both LATENTs of SamplerCustomAdvanced: the output and the denoised output."""
        import comfy_extras.nodes_custom_sampler as custom

        return self.with_sampler(model, custom.KSamplerSelect.execute(self.sampler).result[0])

    def with_sampler(self, model: Any, sampler: Any) -> Any:
        """The same with this SAMPLER."""
        import comfy_extras.nodes_custom_sampler as custom

        noise = (custom.DisableNoise.execute() if self.first else custom.RandomNoise.execute(self.seed)).result[0]
        guider = custom.CFGGuider.execute(model, self.positive, self.negative, self.cfg).result[0]
        sigmas = custom.BasicScheduler.execute(model, self.scheduler, self.steps, 1.0).result[0]
        sigmas = custom.SplitSigmas.execute(sigmas, self.last).result[0][self.first :]
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, self._start()).result

    def _start(self) -> dict[str, Tensor]:
        samples = with_streams([stream.clone() for stream in tiny.streams_of(self.latent)])
        return {"samples": samples} if self.mask is None else {"samples": samples, "noise_mask": self.mask}


def with_streams(streams: list[Tensor]) -> Any:
    return streams[0] if len(streams) == 1 else tiny.nested(*streams)


def packed(samples: Any) -> Tensor:
    """All numbers of a LATENT's ``samples``: those of a video and its sound one after another."""
    streams = tiny.streams_of(samples)
    return samples if len(streams) == 1 else torch.cat([stream.flatten(1) for stream in streams], 1)


def job(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] | None = None, **options: Any) -> Job:
    """A run with random positive (seed 1) and negative (seed 2) text.

    On an accelerator the model runs once now, so that a recorded run is not the first of its shapes (see `repeated`).
    """
    size = size or built.size
    defaults = {"positive": built.conditioning(seed=1), "negative": built.conditioning(seed=2)}
    made = Job(
        **{**defaults, "latent": tiny.latent(built.channels, batch, *size, built.frames, built.sound), **options}
    )
    if ACCELERATED and not count_hooks(built.model):  # a test that has hooks on the model counts its runs
        made.run(built.model)
    return made


def plain(model: Any, work: Job) -> Tensor:
    """What a run without recording gives, twice the same (see `repeated`)."""
    latent: Tensor = repeated(lambda: packed(work.run(model)["samples"]))
    return latent


def blocks_of(model: Any) -> Plan:
    return plan_of(model.model)


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
    """ForwardRecorder hooks of every kind on every module."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


def global_map(recorder: Any, latent: Tensor) -> Tensor:
    """The global map of what a recorder kept for a latent, by the default methods."""
    return aggregate(recorder.collect(latent)).maps


IDENTICAL_RUNS = RUNS + 2


def identical(model: Any, work: Any, **options: Any) -> Any:
    """Sample with and without a recorder: the same to the last bit, and nothing is left. Returns the recording.

    Of the `IDENTICAL_RUNS` runs the last but one is recorded.
    """
    recording, recorder = record(model, options.pop("window", Window()), RecordOptions(**options))
    expected = plain(model, work)
    recorded = work.run(recording)["samples"]
    assert torch.isfinite(expected).all() and expected.std() > 0
    assert torch.equal(expected, packed(recorded))
    assert torch.equal(expected, packed(work.run(model)["samples"]))
    assert count_hooks(model) == 0
    return recorder.collect(recorded)


def names(items: Iterable[Any]) -> list[str]:
    return [item.name for item in items]


def stub_guider(**conds: Any) -> SimpleNamespace:
    """Just enough of a guider for a run that never reaches a model."""
    patcher = SimpleNamespace(
        get_model_object=lambda _name: SimpleNamespace(percent_to_sigma=lambda share: 10 * (1 - share))
    )
    return SimpleNamespace(conds=conds, model_patcher=patcher)


def encoding_clip(tokenizer: Any, encoder: Any) -> Any:
    """A CLIP of ComfyUI that encodes with a tokenizer and a text encoder, without any model management."""
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    clip.cond_stage_model = encoder
    clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.use_clip_schedule = False
    clip.patcher = SimpleNamespace(
        forced_hooks=None, load_device=torch.device("cpu"), clone=lambda **_options: clip.patcher
    )
    clip.load_model = lambda _tokens=None: clip.patcher
    return clip
