"""One recorded sampling run: its conditionings, its step window, and the recording of each conditioning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attention.merge import blend, same_layout
from ..attention.record import Affinity, Attention, AttentionError, Tokens
from .conditioning import length_of, unusable, words_of
from .families import temporal_compression, vae_scale
from .families.base import Plan
from .forward import ForwardRecorder
from .hooks import ModelCall, SamplingRun
from .options import RecordOptions
from .reduce.cond_recorder import CondRecording, without_right
from .reduce.self_maps import by_latent_frame
from .window import Gate, Window


class RecordingRun(SamplingRun):
    """Records the evaluations in its window; after the run it holds no model and no conditioning.

    ``on_site`` is called after each attention site has run.
    """

    def __init__(
        self,
        guider: Any,
        shape: Sequence[int],
        sigmas: Tensor,
        window: Window,
        options: RecordOptions,
        on_site: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(shape[0])
        # Guiders with and without a negative have a "positive"; of guiders with other names the first list is recorded.
        first: list[Any] = next(iter(guider.conds.values()), []) if options.prompt == "positive" else []
        conditionings = guider.conds.get(options.prompt, first)
        self._unusable: dict[Any, str] = {}
        for entry in conditionings:
            cond = entry.get("cross_attn")
            if cond is not None:
                self.tokens[entry["uuid"]] = _tokens_to_keep(length_of(cond, entry), words_of(cond, entry))
                self._unusable[entry["uuid"]] = unusable(cond, entry, options.prompt)
        # Whether the latent that sampling began with is finite. It is read only after the run, which waits for the device anyway.
        self._began_finite: Tensor | bool = True
        self.evaluations = 0
        self.failed = False
        self._size, self._length = tuple(shape[-2:]), shape[2] if len(shape) == 5 else 1
        self._window, self._options, self._on_site = window, options, on_site
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._percent_to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
        self._gate: Gate | None = None
        self._reached: list[float] = []
        self._committed = False
        self._missed = ""
        self._means: dict[Any, Attention] = {}
        # Why there is no recording of a conditioning, as a sentence. The first reason stays.
        self._obstacles: dict[Any, str] = {}

    # -- which evaluations ----------------------------------------------------------------------------------------------

    @property
    def levels(self) -> Sequence[float]:
        """The noise levels of the schedule."""
        return self._sigmas

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        super().begin_evaluation(guider, x, timestep)
        self.evaluations += 1
        if self.evaluations == 1:
            self._began_finite = torch.isfinite(x).all()
        self._committed = False

    def end_evaluation(self) -> None:
        if self._committed and self._gate is not None:
            self._gate.done(self._reached)

    def _in_window(self, plan: Plan) -> bool:
        """Whether the current evaluation is recorded. The window is converted to noise levels once the model is known."""
        if self._gate is None:
            targets = self._window.targets(self._sigmas, plan.noise_level, self._percent_to_sigma)
            self._gate = Gate(targets, len(self._sigmas) < 2 or self._sigmas[0] >= self._sigmas[-1])
        # Where nothing is left to record, or the level is known to be above all that is, it is not read.
        if self._gate.finished or (self.steps is not None and self._gate.is_before(self.steps.lowest)):
            self._reached = []
            return False
        self._reached = self._gate.reached(self.sigma)
        if self.steps is not None and self.evaluations == 1:
            self.steps.started(self.sigma)
        return bool(self._reached)

    def recorders(self, call: ModelCall) -> list[ForwardRecorder]:
        if self._gate is not None and self._gate.finished:
            return []
        rows = self._main_rows(call)
        if not rows:
            return []
        plan = self.plan(call.model)
        if not self._in_window(plan) or (call.frames > 1 and not plan.frame_patch):
            return []  # several frames from an image model are layers of one image (Qwen-Image-Layered)
        self._seen.update(rows)
        size = call.shape[-2], call.shape[-1] + plan.beside(call.given)
        frames = plan.frames(call.frames - plan.guides(call.given))
        return [ForwardRecorder(plan, self._options, rows, size, call.x.shape[0], frames, call.given, self._on_site)]

    # -- recordings ------------------------------------------------------------------------------------------------------

    def commit(self, recorders: list[ForwardRecorder], call: ModelCall) -> None:
        """Add the recording of one model call to the running means."""
        (forward,) = recorders
        plan = self.plan(call.model)
        if forward.failure is not None:
            # Not tried again: what does not fit into memory now will not fit in a later step.
            self._committed = self.failed = True
            failed = (
                f"Nothing was recorded: the image was generated, but recording failed in {forward.failure}; record fewer "
                "methods or a smaller image, or report this error."
            )
            for uuid in forward.conditionings:
                self._obstacles.setdefault(uuid, failed)
            return
        for uuid, result in forward.results().items():
            obstacle = self._unusable.get(uuid) or self._obstacle(forward, result, plan)
            if uuid in self._means and len(result.layers) < len(self._means[uuid].layers):
                continue  # code that does not run in Python any more hides a part of this evaluation
            if result.layers:
                self._committed = True
            if obstacle:
                self._obstacles.setdefault(uuid, obstacle)
                continue
            record = self._record(uuid, result, forward, call.model)
            mean = self._means.get(uuid)
            if mean is not None and not same_layout(mean, record):
                # Another node (such as Deep Shrink) changed the size of the layers during the run; later steps are closer
                # to the final image.
                reason = "the layers changed size there"
                if len(mean.layers) != len(record.layers):
                    reason = "more layers could be recorded there"
                changed = f"averaged only from noise level {self.sigma:.2f} on, because {reason}"
                mean, record = None, replace(record, note="; ".join(filter(None, (record.note, changed))))
            self._means[uuid] = record if mean is None else blend(mean, record, 1 / (len(mean.sigmas) + 1))

    def _obstacle(self, forward: ForwardRecorder, result: CondRecording, plan: Plan) -> str:
        """Why a call gives no recording of a conditioning; empty if it does."""
        if not result.layers and forward.unclear:
            return (
                f"Nothing was recorded: the positions of the words are unknown, because {forward.unclear}; remove the "
                "node that adds tokens to this MODEL or to its conditioning."
            )
        if not result.layers:
            return (
                "Nothing was recorded: the model's attention could not be observed, because the model is compiled or its "
                "attention is replaced as a whole; remove the compile, acceleration or attention couple node from this "
                "MODEL."
            )
        if forward.frames != plan.frames(self._length - forward.guides):
            return (
                "The video was generated a few frames at a time (context windows, or a sampler such as Sampler AR Video), so no "
                "map covers all of it; remove the context window node from this MODEL, choose another sampler, or make a "
                "shorter video."
            )
        if (forward.size[0], forward.size[1] - forward.beside) != self._size:  # an area, the bounds of a mask, a tile
            return (
                "The recorded conditioning is limited to an area, so its map covers only part of the image; limit it "
                "with a mask (Conditioning Set Mask, default area) instead."
            )
        return ""

    def _record(self, uuid: Any, result: CondRecording, forward: ForwardRecorder, model: Any) -> Attention:
        plan, (height, width) = forward.plan, forward.size
        length = self._length - forward.guides
        if forward.beside:
            result = without_right(result, 1 - forward.beside / width)

        def latent_frames(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: by_latent_frame(part, forward.frames, plan.frame_patch, length) for name, part in values.items()
            }

        affinity = None
        if result.affinity is not None:
            matrix = latent_frames({"": result.affinity})[""]
            affinity = Affinity(*result.affinity_grid, matrix, latent_frames(result.affinity_parts))
        layers = [
            replace(layer, maps=latent_frames(dict(layer.maps)), scores=latent_frames(dict(layer.scores)))
            for layer in result.layers.values()
        ]
        return Attention(
            self._family,
            height,
            width - forward.beside,
            vae_scale(model),
            tuple(layers),
            self.tokens[uuid],
            self._options.defaults(plan.defaults),
            affinity,
            (self.sigma,),
            self._note(result, plan),
            length if plan.frame_patch else 1,
            temporal_compression(model),
            plan.frame_group,
        )

    def _note(self, result: CondRecording, plan: Plan) -> str:
        notes = []
        lost = len(plan.blocks) - len(result.layers)
        if lost:
            notes.append(
                f"{lost} of {len(plan.blocks)} layers could not be recorded, because another node replaces their attention"
            )
        if result.unscored:
            notes.append(
                f"the self-attention of {len(result.unscored)} of {len(plan.blocks)} layers could not be recorded, so these "
                "layers have no score"
            )
        if self._window.auto and abs(math.log(max(self.sigma, 1e-9) / plan.noise_level)) > 1:
            notes.append(f"recorded at noise level {self.sigma:.2f}, far from the best level, {plan.noise_level:.2f}")
        return "; ".join(notes)

    def close(self) -> None:
        """Release everything that belongs to the model."""
        if self._gate is not None and self._gate.missed:
            self._missed = (
                f"{self._gate.missed} of {self._gate.wanted} evaluations in the step window were not recorded, because the "
                "conditioning was not active there, a cache skipped them, or their attention could not be observed"
            )
        self._began_finite = bool(self._began_finite)
        self._plans.clear()
        self._percent_to_sigma = self._on_site = self.denoised = None

    # -- access ------------------------------------------------------------------------------------------------------------

    def attention(self, entry: int) -> Attention:
        """The recording of one conditioning of the prompt. Raises AttentionError when there is none; the message says why."""
        order = list(self.tokens)
        if not order:
            raise AttentionError(
                f"The sampler had no {self._options.prompt} text conditioning, so there is no attention to words; connect an "
                "encoded prompt."
            )
        if not 0 <= entry < len(order):
            raise AttentionError(
                f"There is no conditioning number {entry}; this run had {len(order)}, so choose a number from 0 to "
                f"{len(order) - 1}."
            )
        if not self._began_finite:
            raise AttentionError(
                "The latent that was sampled is not a number (NaN or infinity), so no mask can be made; check the LATENT that "
                "goes into the sampler."
            )
        # Entry 0 also stands for "no choice": then any conditioning that was active in the window will do.
        chosen = [order[entry]] if entry else order
        for uuid in chosen:
            if uuid in self._means:
                mean = self._means[uuid]
                return replace(mean, note="; ".join(filter(None, (mean.note, self._missed))))
        reason = next((self._obstacles[uuid] for uuid in chosen if uuid in self._obstacles), None)
        raise AttentionError(reason or f"Nothing was recorded: {self._why_nothing_ran()}.")

    def _why_nothing_ran(self) -> str:
        if not self.evaluations:
            return "the sampler never evaluated the model (no steps, or every step was skipped); let it run at least one step"
        if self._gate is not None and self._gate.empty:
            return (
                f"no step of this run ({len(self._sigmas) - 1} steps) falls into the step window from "
                f"{self._window.start:g} to {self._window.end:g}; widen the window, or set it to auto"
            )
        if self._options.prompt == "negative":
            return (
                "the sampler did not evaluate the negative prompt in the recorded step, most likely because its CFG scale is 1; "
                "use a higher one, or record the positive prompt"
            )
        return (
            "the conditioning was not active in the recorded step (its timestep range ends elsewhere), or a cache skipped "
            "the step; choose another step window or noise level"
        )


def _tokens_to_keep(length: int, words: Any) -> Tokens:
    """Words and special tokens of the prompt, and one column for all others; every token if the words are unknown."""
    if words is None or words.length != length:
        # A word map that does not fit (the conditioning was joined with another) is reported when phrases are looked up.
        return Tokens(tuple(range(length)), False, length, words)
    kept = {position for word in words.words for position in word.positions} | set(words.special)
    return Tokens(tuple(sorted(kept)), len(kept) < length, length, words)
