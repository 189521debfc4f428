"""Record a picture that is already there: noise its latent to one level and let the model look at it once.

Source: GoCA, section on inference: one conditional forward pass of a lightly noised picture, without guidance. It goes
through the host's own sampling, so whatever hangs on the MODEL or on the CONDITIONING works as in a sampler.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..attention.flip import flip_recording
from ..attention.merge import merge
from ..attention.record import Attention, AttentionError
from .families import plan_of
from .flip import flip_conditioning
from .hooks import SamplingPatch
from .options import RecordOptions
from .recorder import Recorder
from .run import RecordingRun
from .window import Window

# Every evaluation is recorded; each run has just the one that is wanted.
_ALL = Window(False, 0.0, 1.0, 1)
# People write down a bound of the noise levels with three digits.
_ROUNDING = 0.01


def segment(
    model: Any,
    samples: Tensor,
    positive: list[Any],
    *,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    draws: int = 1,
    flip: bool = False,
    options: RecordOptions | None = None,
    noise_mask: Tensor | None = None,
    batch_index: Sequence[int] | None = None,
) -> Attention:
    """What a MODEL (ModelPatcher) attends to in pictures ``samples`` [B, C, h, w], a LATENT's, by a CONDITIONING.

    ``sigmas``: noise levels in the model's own terms, None = the paper's for its family. ``draws``: how many times noise
    is drawn, from ``seed``, ``seed`` + 1, ... as the host's samplers draw it; each draw is seen at each level. ``flip``:
    the mirrored picture is seen too. All of these are averaged, one forward pass each. ``noise_mask`` and
    ``batch_index``: as in a LATENT; a mask matters to inpaint models only. The other options are those of
    ``recorder.record``.

    Raises AttentionError with one sentence for inputs that cannot be segmented, UnknownFamily for such a model.
    """
    plan = plan_of(model.model)
    samples = _check_latent(model, samples)
    levels = _check_levels(model, plan.noise_level, sigmas)
    if draws < 1:
        raise AttentionError(f"Noise would be drawn {draws} times, so there is nothing to see; draw it at least once.")
    if not any(context is not None for context, *_ in positive):
        raise AttentionError(
            "The conditioning has no text, so there is no attention to words; encode a prompt, best with Encode Prompt (GoCA)."
        )
    observer = _Observer(options or RecordOptions())
    recording = observer.install(model)
    views = [(samples, positive, noise_mask)]
    if flip:
        views.append(
            (samples.flip(-1), flip_conditioning(positive), None if noise_mask is None else noise_mask.flip(-1))
        )

    # A forward pass of a batch of large images takes long, so progress goes by attention sites.
    sites = sum(1 for block in plan.blocks for _ in block.sites)

    def recordings() -> Iterator[Attention]:
        progress = comfy.utils.ProgressBar(draws * len(levels) * len(views) * sites)
        ends = itertools.count(sites, sites)

        def passed(end: int) -> None:
            if progress.current < end - 1:  # the last step is the end of the pass
                progress.update(1)

        for number in range(draws):
            own = (seed + number) % 2**64
            noise = comfy.sample.prepare_noise(samples, own, batch_index)
            for sigma in levels:
                for is_flipped, view in enumerate(views):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    end = next(ends)
                    record = observer.observe(recording, *view, noise, sigma, own, partial(passed, end))
                    progress.update_absolute(end)
                    yield flip_recording(record) if is_flipped else record

    return merge(recordings())


def sigmas_at(model: Any, percents: Sequence[float]) -> list[float]:
    """Noise levels at shares of sampling, 0 (nothing but noise) to 1 (done), kept to those the model has learnt.

    Raises AttentionError for a share outside.
    """
    sampling = model.get_model_object("model_sampling")
    for percent in percents:
        if not 0 <= percent <= 1:
            raise AttentionError(
                f"A share of sampling cannot be {percent:g}; choose one from 0 (nothing but noise) to 1 (the finished picture)."
            )
    return [_clip(float(sampling.percent_to_sigma(percent)), *_range(model)) for percent in percents]


def spread(start: float, end: float, count: int) -> list[float]:
    """``count`` numbers from ``start`` to ``end``, evenly spread; one alone is their middle."""
    if count == 1:
        return [(start + end) / 2]
    return [start + (end - start) * number / (count - 1) for number in range(count)]


class _Guider(comfy.samplers.CFGGuider):
    """The positive conditioning alone: no negative, no scale, none of the functions that guidance nodes hang on a MODEL."""

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        conds = [self.conds["positive"]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]


class _Observer(SamplingPatch[RecordingRun]):
    """A recorder whose only run is asked at once, so that it does not take a sampler's place among the finished runs."""

    key = Recorder.key

    def __init__(self, options: RecordOptions) -> None:
        super().__init__()
        self._options = options
        self._runs: list[RecordingRun] = []
        self._on_site: Callable[[], None] = lambda: None

    def open_run(self, guider: Any, noise: Tensor, sigmas: Tensor) -> RecordingRun:
        return RecordingRun(guider, noise.shape, sigmas, _ALL, self._options, self._on_site)

    def finish_run(self, run: RecordingRun, samples: Tensor) -> None:
        run.close()
        self._runs.append(run)

    def observe(
        self, recording: Any, samples: Tensor, positive: list[Any], noise_mask: Tensor | None, noise: Tensor,
        sigma: float, seed: int, on_site: Callable[[], None],
    ) -> Attention:  # fmt: skip
        """One forward pass of the recording model: a sampler's only step, from ``sigma`` to zero.

        ``on_site`` is called for each attention site that has run.
        """
        self._runs, self._on_site = [], on_site
        guider = _Guider(recording)
        guider.inner_set_conds({"positive": positive})
        euler, steps = comfy.samplers.ksampler("euler"), torch.tensor([sigma, 0.0])
        guider.sample(noise, samples, euler, steps, denoise_mask=noise_mask, disable_pbar=True, seed=seed)
        if not self._runs:
            raise AttentionError(
                "Nothing was recorded: another node answers in place of the sampler; take it off this MODEL."
            )
        return self._runs[0].attention(0)


def _range(model: Any) -> tuple[float, float]:
    sampling = model.get_model_object("model_sampling")
    return float(sampling.sigma_min), float(sampling.sigma_max)


def _clip(sigma: float, low: float, high: float) -> float:
    return min(max(sigma, low), high)


def _check_levels(model: Any, default: float, sigmas: Sequence[float] | None) -> list[float]:
    low, high = _range(model)
    if sigmas is None:
        return [_clip(default, low, high)]
    if len(sigmas) == 0:
        raise AttentionError("There is no noise level to look at; give at least one.")
    for sigma in sigmas:
        if not low * (1 - _ROUNDING) <= sigma <= high * (1 + _ROUNDING):
            raise AttentionError(
                f"The model has learnt nothing about noise level {sigma:g}; choose a sigma from {low:.3g} to {high:.3g}."
            )
    return [_clip(float(sigma), low, high) for sigma in sigmas]


def _check_latent(model: Any, samples: Any) -> Tensor:
    """The pictures as the model takes them. Raises AttentionError for anything that is not a picture of its kind."""
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
        raise AttentionError(
            "This kind of latent (several latents in one) cannot be segmented; encode a picture with VAE Encode."
        )
    shape, form = "x".join(map(str, samples.shape)), model.get_model_object("latent_format")
    if not samples.numel():
        raise AttentionError(f"The latent is empty (its size is {shape}); encode a picture of at least one cell.")
    # Models for video may paint single pictures; these have one frame.
    if samples.ndim != 4 and not (samples.ndim == form.latent_dimensions + 2 == 5 and samples.shape[2] == 1):
        raise AttentionError(
            f"A latent of size {shape} is not a picture (video and sound cannot be segmented); encode a picture with VAE Encode."
        )
    if samples.shape[1] != form.latent_channels:
        raise AttentionError(
            f"The latent has {samples.shape[1]} channels but this model works with {form.latent_channels}; encode the "
            "picture with the model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise AttentionError(
            "The latent holds numbers that are not finite (NaN or infinity); run the VAE at a higher precision or use "
            "another one."
        )
    if not torch.count_nonzero(samples):
        raise AttentionError(
            "The latent is empty (all zeros, as from Empty Latent Image); encode the picture with VAE Encode."
        )
    return comfy.sample.fix_empty_latent_channels(model, samples)
