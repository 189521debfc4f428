"""Record an existing image: add noise to its latent and evaluate the model once.

Source: GoCA, section on inference: one conditional forward pass of a lightly noised image, without guidance. It uses
ComfyUI's own sampling, so everything that is attached to the MODEL or the CONDITIONING works as in a sampler.
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

from ..attention.merge import flip_recording, merge
from ..attention.record import Attention, AttentionError
from .families import find_family, plan_of
from .flip import flip_conditioning
from .hooks import SamplingPatch
from .options import RecordOptions
from .recorder import Recorder
from .run import RecordingRun
from .window import Window

# Every evaluation is recorded; each run has exactly one.
_ALL = Window(False, 0.0, 1.0, 1)
# Users write the bounds of the noise levels with three digits.
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
    """The attention of a MODEL (ModelPatcher) to a CONDITIONING in the images ``samples`` [B, C, h, w] (of a LATENT).

    ``sigmas``: noise levels of the model; None = the paper's choice for its family. ``draws``: how many times noise is
    drawn, with seeds ``seed``, ``seed`` + 1, ... as in ComfyUI's samplers; each draw is evaluated at each level. ``flip``:
    the flipped image is evaluated too. The result is the average over all of these, one forward pass each.
    ``noise_mask`` and ``batch_index``: as in a LATENT; the mask only matters to inpaint models. The other options are
    those of ``recorder.record``.

    Raises AttentionError for inputs that cannot be segmented, UnknownFamily for a model that cannot be recorded.
    """
    plan, family = plan_of(model.model), find_family(model.model)
    if family.with_sound:
        raise AttentionError(
            f"An image without sound cannot be segmented with {family.label}, which needs both; use another model."
        )
    samples = _check_latent(model, samples)
    levels = _check_levels(model, plan.noise_level, sigmas)
    if draws < 1:
        raise AttentionError(f"Noise cannot be drawn {draws} times; set the number of draws to at least 1.")
    if not any(context is not None for context, *_ in positive):
        raise AttentionError(
            "The conditioning has no text, so there is no attention to words; encode a prompt with CLIP Text Encode."
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
            if progress.current < end - 1:  # the last step follows at the end of the pass
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
    """Noise levels at fractions of sampling, 0 (pure noise) to 1 (finished), clipped to the model's range.

    Raises AttentionError for a fraction outside 0 to 1.
    """
    sampling = model.get_model_object("model_sampling")
    for percent in percents:
        if not 0 <= percent <= 1:
            raise AttentionError(
                f"A fraction of sampling cannot be {percent:g}; choose one from 0 (pure noise) to 1 (the finished image)."
            )
    return [_clip(float(sampling.percent_to_sigma(percent)), *_range(model)) for percent in percents]


def spread(start: float, end: float, count: int) -> list[float]:
    """``count`` evenly spaced numbers from ``start`` to ``end``; if it is 1, their middle."""
    if count == 1:
        return [(start + end) / 2]
    return [start + (end - start) * number / (count - 1) for number in range(count)]


class _Guider(comfy.samplers.CFGGuider):
    """Evaluates only the positive conditioning: no negative, no CFG scale, no functions from guidance nodes."""

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        conds = [self.conds["positive"]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]


class _Observer(SamplingPatch[RecordingRun]):
    """A recorder whose run is used at once and does not go into the finished-run cache."""

    key = Recorder.key

    def __init__(self, options: RecordOptions) -> None:
        super().__init__()
        self._options = options
        self._runs: list[RecordingRun] = []
        self._on_site: Callable[[], None] = lambda: None

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> RecordingRun:
        return RecordingRun(guider, shape, sigmas, _ALL, self._options, self._on_site)

    def finish_run(self, run: RecordingRun, samples: Tensor) -> None:
        run.close()
        self._runs.append(run)

    def observe(
        self, recording: Any, samples: Tensor, positive: list[Any], noise_mask: Tensor | None, noise: Tensor,
        sigma: float, seed: int, on_site: Callable[[], None],
    ) -> Attention:  # fmt: skip
        """One forward pass of the recording model, as a sampler's only step from ``sigma`` to zero.

        ``on_site`` is called after each attention site has run.
        """
        self._runs, self._on_site = [], on_site
        guider = _Guider(recording)
        guider.inner_set_conds({"positive": positive})
        euler, steps = comfy.samplers.ksampler("euler"), torch.tensor([sigma, 0.0])
        guider.sample(noise, samples, euler, steps, denoise_mask=noise_mask, disable_pbar=True, seed=seed)
        if not self._runs:
            raise AttentionError(
                "Nothing was recorded: another node on this MODEL replaces the sampler; remove that node."
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
        raise AttentionError("No noise level was given; give at least one.")
    for sigma in sigmas:
        if not low * (1 - _ROUNDING) <= sigma <= high * (1 + _ROUNDING):
            raise AttentionError(
                f"The noise level {sigma:g} is outside this model's range; choose a sigma from {low:.3g} to {high:.3g}."
            )
    return [_clip(float(sigma), low, high) for sigma in sigmas]


def _check_latent(model: Any, samples: Any) -> Tensor:
    """The images in the shape that the model expects. Raises AttentionError for anything but an image latent of the model."""
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
        raise AttentionError(
            "A latent that holds several latents cannot be segmented; encode an image with VAE Encode."
        )
    shape, form = "x".join(map(str, samples.shape)), model.get_model_object("latent_format")
    if not samples.numel():
        raise AttentionError(
            f"The latent is empty (its size is {shape}); encode an image of at least one latent pixel."
        )
    # Video models may also generate single images, as latents with one frame.
    if samples.ndim != 4 and not (samples.ndim == form.latent_dimensions + 2 == 5 and samples.shape[2] == 1):
        raise AttentionError(
            f"A latent of size {shape} is not an image (video and sound cannot be segmented); encode an image with VAE Encode."
        )
    if samples.shape[1] != form.latent_channels:
        raise AttentionError(
            f"The latent has {samples.shape[1]} channels but this model works with {form.latent_channels}; encode the image "
            "with the model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise AttentionError(
            "The latent contains numbers that are not finite (NaN or infinity); run the VAE at higher precision or use "
            "another VAE."
        )
    if not torch.count_nonzero(samples):
        raise AttentionError(
            "The latent is empty (all zeros, as from Empty Latent Image); encode an image with VAE Encode."
        )
    return comfy.sample.fix_empty_latent_channels(model, samples)
