"""Record attention while any sampler runs: wrappers on a copy of the MODEL, and the recordings by the latent they made."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention.record import Attention, AttentionError
from .families import plan_of
from .forward import ForwardRecorder
from .hooks import ModelCall, model_call, wrapped
from .options import RecordOptions, record_options
from .reduce.cond_recorder import CondRecorder
from .run import Run
from .window import Window

KEY = "goca_record"
# Recordings kept in a process: enough for graphs with many samplers, bounded for long sessions.
_KEEP = 8
# They outlive their recorder: the host may forget a Record Attention node while it still remembers its sampler's result,
# and then asks a new recorder for a run that will not be repeated.
_shelf: OrderedDict[tuple[Any, ...], Run] = OrderedDict()
_lock = threading.RLock()


class Recorder:
    """What Record Attention hands out: it fills itself while samplers run.

    Holds no model. Several samplers may share it; each leaves a run, found again by the latent it returned.
    """

    # A second one under the same key takes the place of the first.
    key = KEY
    _unknown = (
        "This LATENT was not made by a sampler that records with this recorder: wire the MODEL that comes out of "
        "Record Attention into the sampler, and the sampler's own LATENT, unchanged, into Collect Attention "
        f"(only the last {_KEEP} runs are kept)."
    )

    def __init__(self, window: Window, options: RecordOptions) -> None:
        self.window, self.options = window, options
        self._active: list[Run] = []

    # -- the four wrappers ------------------------------------------------------------------------------------------

    def install(self, model: Any) -> Any:
        """A copy of a MODEL (ModelPatcher) that records. Raises UnknownFamily for a kind that cannot be recorded."""
        from comfy.patcher_extension import WrappersMP

        wrappers: dict[str, Callable[..., Any]] = {
            WrappersMP.OUTER_SAMPLE: self._outer_sample,
            WrappersMP.PREDICT_NOISE: self._predict_noise,
            WrappersMP.CALC_COND_BATCH: self._calc_cond_batch,
            WrappersMP.APPLY_MODEL: model_call(self._apply_model),
        }
        return wrapped(model, self.key, wrappers)

    def _open(self, guider: Any, sigmas: Tensor, shape: Sequence[int]) -> Run:
        return Run(guider, sigmas, self.window, shape)

    @property
    def _run(self) -> Run | None:
        return self._active[-1] if self._active else None

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
        run = self._open(executor.class_obj, sigmas, noise.shape)
        with _lock:
            self._active.append(run)
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            self.keep(run, samples)
            return samples
        finally:
            with _lock:
                self._active.remove(run)

    def _predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run = self._run
        if run is None:
            return executor(x, timestep, *args, **kwargs)
        run.begin_evaluation(float(timestep.max()))
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            run.end_evaluation()

    def _calc_cond_batch(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        run = self._run
        if run is None:
            return executor(*args, **kwargs)
        run.begin_pass()
        try:
            return executor(*args, **kwargs)
        finally:
            run.end_pass()

    def _apply_model(
        self, call: ModelCall, model: Any, x: Tensor, options: dict[str, Any], given: dict[str, Any]
    ) -> Tensor:
        run = self._run
        forward = None if run is None else self._forward(run, model, x, options, given)
        if run is None or forward is None:
            return call(options)
        with forward.installed(options) as recording:
            out = call(recording)
        with _lock:
            run.commit(forward, model)
        return out

    def _forward(
        self, run: Run, model: Any, x: Tensor, options: dict[str, Any], given: dict[str, Any]
    ) -> ForwardRecorder | None:
        """The recorder of this call, or None when it has no rows to record."""
        uuids = options.get("uuids") or ()
        size = run.batch
        # Anything else is a call that another node has cut up, and whose rows are whose cannot be told.
        if x.ndim not in (4, 5) or x.shape[0] != size * len(uuids):
            return None
        entries = {
            uuid: CondRecorder(slice(i * size, (i + 1) * size), run.tokens[uuid])
            for i, uuid in enumerate(uuids)
            if uuid in run.tokens
        }
        if not entries or not run.wants(model):
            return None
        plan, length = run.plan(model), x.shape[2] if x.ndim == 5 else 1
        if length > 1 and not plan.frame_patch:
            return None  # several layers of one picture (Qwen-Image-Layered)
        frames = plan.frames(length)
        return ForwardRecorder(plan, self.options, entries, (x.shape[-2], x.shape[-1]), x.shape[0], frames, given)

    # -- the recordings ---------------------------------------------------------------------------------------------

    def _marks(self, samples: Tensor) -> list[tuple[Any, ...]]:
        return [(self.window, self.options, mark) for mark in _fingerprints(samples)]

    def keep(self, run: Run, samples: Tensor) -> None:
        """Called with every run that came to its end and the latent it returned: puts it on the shelf."""
        run.close()
        with _lock:
            for mark in self._marks(samples):
                _shelf.pop(mark, None)
                _shelf[mark] = run
            while len({id(kept) for kept in _shelf.values()}) > _KEEP:
                oldest = next(iter(_shelf.values()))
                for mark in [mark for mark, kept in _shelf.items() if kept is oldest]:
                    del _shelf[mark]

    def collect(self, samples: Tensor, entry: int = 0) -> Attention:
        """The recording of the run that returned ``samples`` (the ``samples`` of a LATENT).

        ``entry``: which positive conditioning, if several were combined. Raises AttentionError with one sentence when
        nothing was recorded, saying why.
        """
        return self._find(samples).attention(entry)

    def _find(self, samples: Tensor) -> Run:
        """The run that returned this latent. Raises AttentionError when there is none."""
        if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
            raise AttentionError("This kind of latent (several latents in one) cannot be recorded; use an image model.")
        if samples.numel() == 0:
            raise AttentionError(
                f"The latent is empty (its size is {'x'.join(map(str, samples.shape))}); give the sampler a picture of at least one cell."
            )
        with _lock:
            run = next((_shelf[mark] for mark in self._marks(samples) if mark in _shelf), None)
        if run is None:
            raise AttentionError(self._unknown)
        return run


def _fingerprints(samples: Tensor) -> list[str]:
    """Marks of a latent that survive a change of device and of precision: the host may hand out half precision."""
    marks = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if samples.dtype not in (dtype, torch.float32, torch.float64):
            continue
        data = samples.detach().to("cpu", dtype).contiguous()
        digest = hashlib.sha256(data.view(torch.uint8).numpy().tobytes())
        marks.append(f"{dtype}{tuple(samples.shape)}{digest.hexdigest()}")
    return marks


def record(
    model: Any,
    window: Window,
    *,
    all_heads: bool = False,
    all_layers: bool = False,
    full_affinity: bool = False,
    reference_channel0: bool = False,
    grid_limit: int = RecordOptions.grid_limit,
    affinity_parts: bool = False,
) -> tuple[Any, Recorder]:
    """A recording copy of a MODEL and its recorder.

    Kept are the family's own head and layer methods and the plain averages; ``all_heads`` and ``all_layers`` keep every
    method. ``full_affinity``: propagation at the finest layer's grid. ``reference_channel0``: as the released code.
    ``grid_limit``: layers are compared on at most so many tokens; 0 = on as many as there are. ``affinity_parts``: the
    self-attention of each propagation layer as well, beside their mean.
    """
    kept = all_heads, all_layers, full_affinity, reference_channel0, grid_limit, affinity_parts
    options = record_options(plan_of(model.model), *kept)
    recorder = Recorder(window, options)
    return recorder.install(model), recorder
