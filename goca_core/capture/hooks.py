"""Base classes for all nodes that follow a sampling run.

`SamplingPatch` puts wrappers on a copy of a MODEL; `SamplingRun` is one run of a sampler with that MODEL. Recorders,
regional passes and semantic guidance are such patches. Each defines its kind of run and what it does with recorded calls.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..attention.record import AttentionError, Tokens
from . import passthrough
from .comfy_graphs import drop_captured
from .families import find_family, network_of
from .families.base import Plan
from .forward import ForwardRecorder
from .steps import Steps, noise_level, schedule_of, steps_of, told

_lock = threading.RLock()
_log = logging.getLogger("goca")


@dataclass(frozen=True)
class ModelCall:
    """A call of the diffusion model: the latent [rows, C, ...], the transformer_options, and other named arguments."""

    model: Any
    x: Tensor
    options: dict[str, Any]
    given: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the latent, [rows, C, ...]: that of the video, where ``x`` holds a video and its sound."""
        streams: Sequence[Sequence[int]] = self.given.get("latent_shapes") or ()
        return (self.x.shape[0], *streams[0][1:]) if len(streams) > 1 else tuple(self.x.shape)

    @property
    def frames(self) -> int:
        """Frames of the latent; 1 for an image."""
        return self.shape[2] if len(self.shape) == 5 else 1


class SamplingRun(ABC):
    """One run of a sampler. It is notified of each evaluation and decides what to record of each model call.

    ``tokens``: the conditionings that are recorded, by uuid, with the tokens to keep of each.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.tokens: dict[Any, Tokens] = {}
        self.steps: Steps | None = None
        """Where the sampler is, if it is known; the patch sets it when sampling starts."""
        self.denoised: Tensor | None = None
        """The second latent that custom samplers return, denoised_output; the patch sets it before the run is finished."""
        self._timestep: Tensor | float = 0.0
        self._sigma: float | None = None
        self._seen: set[Any] = set()
        # Several GPUs run copies of the network.
        self._plans: dict[int, tuple[nn.Module, Plan]] = {}
        self._family = ""

    @property
    def sigma(self) -> float:
        """The noise level of the evaluation. The CPU waits for it, so ask for it only where it is needed."""
        if self._sigma is None:
            self._sigma = noise_level(self._timestep)
        return self._sigma

    @property
    def levels(self) -> Sequence[float]:
        """The noise levels of the schedule, if the run needs to know where the sampler is."""
        return ()

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        """Called before the sampler gets a prediction at this noise level."""
        self._timestep, self._sigma, self._seen = timestep, None, set()

    def end_evaluation(self) -> None:  # noqa: B027
        """Called after the prediction, also if it failed."""

    def forget_timestep(self) -> None:
        """Called then: a finished run is kept, and a tensor of the sampler would keep memory of the device."""
        self._timestep = 0.0

    @abstractmethod
    def recorders(self, call: ModelCall) -> list[ForwardRecorder]:
        """The recorders for this model call; none if it is not recorded."""

    @abstractmethod
    def commit(self, recorders: list[ForwardRecorder], call: ModelCall) -> None:
        """Take over what the recorders recorded."""

    def plan(self, model: Any) -> Plan:
        """The plan of the running model, made once per run and network."""
        network = network_of(model)
        if id(network) not in self._plans:
            family = find_family(model)
            self._plans[id(network)], self._family = (network, family.plan(network)), family.name
        return self._plans[id(network)][1]

    def _main_rows(self, call: ModelCall) -> dict[Any, tuple[slice, Tokens]]:
        """The rows of each conditioning that is to be recorded and was not recorded yet in this evaluation.

        Other nodes call the model again within an evaluation (perturbed attention guidance, for example); the first call
        with a conditioning is the main pass. If another node has split the batch, the rows cannot be matched to
        conditionings and the result is empty.
        """
        uuids, size = call.options.get("uuids") or (), self.batch
        if len(call.shape) not in (4, 5) or call.x.shape[0] != size * len(uuids):
            return {}
        return {
            uuid: (slice(i * size, (i + 1) * size), self.tokens[uuid])
            for i, uuid in enumerate(uuids)
            if uuid in self.tokens and uuid not in self._seen
        }


R = TypeVar("R", bound=SamplingRun)


class SamplingPatch(ABC, Generic[R]):
    """Puts wrappers on a copy of a MODEL. It holds no model itself; several samplers may share it.

    ``key``: a second patch with the same key replaces the first.
    """

    key: str
    takes_sound: ClassVar[bool] = True
    """Whether the runs may be of a video with its sound, which ComfyUI samples as one packed latent."""

    def __init__(self) -> None:
        self._active: list[R] = []

    @abstractmethod
    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> R:
        """A new run, for a sampler that is about to start on a latent of this shape."""

    def finish_run(self, run: R, samples: Tensor) -> None:
        """Called when a run is complete and has returned this latent; not if it was interrupted or failed.

        Of a video with sound, ``samples`` and the shape are those of the video.
        """

    def around(self, run: R, call: ModelCall, text: Any) -> contextlib.AbstractContextManager[None]:
        """What is done around each model call of a run. ``text``: the text that the network is given."""
        return contextlib.nullcontext()

    def install(self, model: Any) -> Any:
        """A copy of a MODEL (ModelPatcher) with the wrappers.

        Raises UnknownFamily for a model whose attention cannot be recorded.
        """
        from comfy.patcher_extension import WrappersMP

        find_family(model.model)
        wrappers: dict[str, Callable[..., Any]] = {
            WrappersMP.OUTER_SAMPLE: self._outer_sample,
            WrappersMP.PREDICT_NOISE: self._predict_noise,
            WrappersMP.APPLY_MODEL: self._apply_model,
        }
        patched = model.clone()
        for kind, wrapper in wrappers.items():
            patched.remove_wrappers_with_key(kind, self.key)
            patched.add_wrapper_with_key(kind, self.key, wrapper)
        return patched

    @property
    def current(self) -> R | None:
        """The run that is in progress."""
        return self._active[-1] if self._active else None

    # -- the wrappers -------------------------------------------------------------------------------------------------

    def _outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        # Before a compiler traces the model: it would trace it again if a function were replaced later.
        passthrough.install()
        schedule = torch.tensor(schedule_of(sampler, sigmas.tolist()))
        streams: Sequence[Sequence[int]] = kwargs.get("latent_shapes") or ()
        if len(streams) > 1 and not self.takes_sound:
            raise AttentionError(
                "The latent holds a video and its sound, which cannot be divided into regions; sample the video without sound."
            )
        shape = tuple(streams[0]) if len(streams) > 1 else tuple(noise.shape)
        run = self.open_run(executor.class_obj, shape, schedule)
        _log.debug(
            "GoCA: %s opens a run over %d steps for a latent of size %s.", type(self).__name__, len(sigmas) - 1, shape
        )
        # Without a schedule that the run knows as numbers, it reads the levels.
        if run.levels:
            run.steps = steps_of(sampler, run.levels)
            # ComfyUI passes the callback by its place: the second after the schedule.
            if len(args) > 1:
                args = (args[0], told(args[1], run.steps), *args[2:])
            elif "callback" in kwargs:
                kwargs["callback"] = told(kwargs["callback"], run.steps)
        with _lock:
            self._active.append(run)
        try:
            samples: Tensor = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            denoised = _denoised_output(executor.class_obj, run.steps, samples, len(streams) > 1)
            run.denoised = None if denoised is None else _first_stream(denoised, streams)
            self.finish_run(run, _first_stream(samples, streams))
            return samples
        finally:
            with _lock:
                self._active.remove(run)

    def _predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run = self.current
        if run is None:
            return executor(x, timestep, *args, **kwargs)
        run.begin_evaluation(executor.class_obj, x, timestep)
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            run.end_evaluation()
            run.forget_timestep()

    def _apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **given: Any,
    ) -> Tensor:
        run, options = self.current, {} if transformer_options is None else transformer_options
        call = ModelCall(executor.class_obj, x, options, given)
        recorders = [] if run is None else run.recorders(call)
        if recorders:
            drop_captured(network_of(call.model))
        with contextlib.ExitStack() as stack:
            if run is not None:
                stack.enter_context(self.around(run, call, c_crossattn))
            for recorder in recorders:
                options = stack.enter_context(recorder.installed(options))
            out: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **given)
        if run is not None and recorders:
            with _lock:
                run.commit(recorders, call)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("GoCA: %s recorded a model call at noise level %.3g.", type(self).__name__, run.sigma)
        return out


def _first_stream(samples: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """The first of the latents of these ``shapes`` that were packed into one [B, 1, N]; one that holds no others as it is."""
    if len(shapes) < 2:
        return samples
    size = math.prod(shapes[0][1:])
    return samples[:, :, :size].reshape(samples.shape[0], *shapes[0][1:])


def _denoised_output(guider: Any, steps: Steps | None, samples: Tensor, packed: bool) -> Tensor | None:
    """What ComfyUI's custom samplers return as denoised_output beside ``samples`` [B, C, ...]; None if it is not known.

    ``packed``: several latents are packed into ``samples`` [B, 1, N].
    """
    if steps is None:
        return None
    denoised, steps.denoised = steps.denoised, None
    if not isinstance(denoised, Tensor) or denoised.ndim < (3 if packed else 4) or denoised.shape != samples.shape:
        return None
    latent: Tensor = guider.model_patcher.model.process_latent_out(denoised.cpu())
    return latent
