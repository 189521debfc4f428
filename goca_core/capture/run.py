"""One sampling run: its conditionings, its step window, and what was recorded for each conditioning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..attention.merge import blend, same_layout
from ..attention.record import Affinity, Attention, AttentionError, Tokens
from . import passthrough
from .conditioning import attached, length_of
from .families import find_family, network_of
from .families.base import Plan
from .forward import ForwardRecorder
from .reduce.cond_recorder import CondRecording
from .reduce.self_maps import by_latent_frame
from .window import Gate, Window


class Run:
    """Opened and closed by the OUTER_SAMPLE wrapper; lives on without models or conditionings."""

    def __init__(self, guider: Any, sigmas: Tensor, window: Window, shape: Sequence[int]) -> None:
        # "positive" in every guider that has a negative or none; a guider with other names records its first list.
        conditionings = guider.conds.get("positive", next(iter(guider.conds.values()), []))
        self.order: list[Any] = []
        self.tokens: dict[Any, Tokens] = {}
        self.batch, self._size = shape[0], tuple(shape[-2:])
        self._length = shape[2] if len(shape) == 5 else 1
        self._cropped: set[Any] = set()
        self._windowed = False
        for entry in conditionings:
            context = entry.get("cross_attn")
            if context is not None:
                self.order.append(entry["uuid"])
                self.tokens[entry["uuid"]] = _kept_tokens(length_of(context, entry), attached(entry))
        self._window = window
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._percent_to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
        self._gate: Gate | None = None
        self._plan: Plan | None = None
        self._family = ""
        self._means: dict[Any, Attention] = {}
        self._reached: list[float] = []
        self._targets: tuple[float, ...] = ()
        self._passes = self._evaluations = 0
        self._sigma = 0.0
        self._committed = self._blind = False
        self._failure: str | None = None
        self._unclear = ""
        self.recording = False

    # -- gating -----------------------------------------------------------------------------------------------------

    def _open_gate(self, plan: Plan) -> None:
        self._targets = self._window.targets(self._sigmas, plan.noise_level, self._percent_to_sigma)
        falling = len(self._sigmas) < 2 or self._sigmas[0] >= self._sigmas[-1]
        self._gate = Gate(self._targets, falling)

    def begin_evaluation(self, sigma: float) -> None:
        self._evaluations += 1
        self._sigma, self._passes, self._committed = sigma, 0, False

    def end_evaluation(self) -> None:
        if self._committed and self._gate is not None:
            self._gate.done(self._reached)
        self.recording = False

    def begin_pass(self) -> None:
        """Only the first pass of an evaluation is the main one; perturbed-attention guidance and others add more."""
        self._passes += 1
        self.recording = self._passes == 1

    def end_pass(self) -> None:
        self.recording = False

    def plan(self, model: Any) -> Plan:
        """The plan of the running model, made once a run; also decides, at its first call, what the window means."""
        if self._plan is None:
            family = find_family(model)
            # Every run asks for it, because another node may have put a function of its own into its place.
            passthrough.install(family.hidden)
            self._plan, self._family = family.plan(network_of(model)), family.name
            self._open_gate(self._plan)
        return self._plan

    def wants(self, model: Any) -> bool:
        """Whether the evaluation under way falls into the step window."""
        if not self.recording:
            return False
        self.plan(model)
        assert self._gate is not None
        self._reached = self._gate.reached(self._sigma)
        return bool(self._reached)

    # -- results ----------------------------------------------------------------------------------------------------

    def commit(self, forward: ForwardRecorder, model: Any) -> None:
        """Take what one model call recorded into the running means."""
        assert self._plan is not None
        if forward.failure is not None:
            # Not tried again: what does not fit into memory now will not fit a step later.
            self._failure, self._committed = forward.failure, True
            return
        for uuid, result in forward.results().items():
            if not result.layers:
                self._blind, self._unclear = True, forward.unclear
                continue
            self._committed = True
            if forward.frames != self._plan.frames(self._length):
                self._windowed = True
                continue
            if forward.size != self._size:
                self._cropped.add(uuid)  # a part of the picture: an area, the bounds of a mask, a tile
                continue
            record = self._record(uuid, result, forward, model)
            mean = self._means.get(uuid)
            if mean is not None and not same_layout(mean, record):
                # Another node changed the layers' sizes on the way (Deep Shrink does); what comes later is nearer to
                # the picture.
                changed = f"averaged from noise level {self._sigma:.2f} on only, because the layers changed there"
                mean, record = None, replace(record, note="; ".join(filter(None, (record.note, changed))))
            self._means[uuid] = record if mean is None else blend(mean, record, 1 / (len(mean.sigmas) + 1))

    def _record(self, uuid: Any, result: CondRecording, forward: ForwardRecorder, model: Any) -> Attention:
        assert self._plan is not None

        def whole(values: Tensor) -> Tensor:
            assert self._plan is not None
            return by_latent_frame(values, forward.frames, self._plan.frame_patch, self._length)

        affinity = None
        if result.affinity is not None:
            parts = {name: whole(part) for name, part in result.affinity_parts.items()}
            affinity = Affinity(*result.affinity_grid, whole(result.affinity), parts)
        layers = [
            replace(
                layer,
                maps={name: whole(values) for name, values in layer.maps.items()},
                scores={name: whole(values) for name, values in layer.scores.items()},
            )
            for layer in result.layers.values()
        ]
        return Attention(
            self._family,
            *forward.size,
            int(getattr(model.latent_format, "spacial_downscale_ratio", 8)),
            tuple(layers),
            self.tokens[uuid],
            self._plan.defaults,
            affinity,
            (self._sigma,),
            self._note(result),
            self._length if self._plan.frame_patch else 1,
            int(getattr(model.latent_format, "temporal_downscale_ratio", 1)),
        )

    def _note(self, result: CondRecording) -> str:
        assert self._plan is not None
        notes = []
        lost = len(self._plan.blocks) - len(result.layers)
        if lost:
            notes.append(
                f"{lost} of {len(self._plan.blocks)} layers could not be recorded (another node replaces their attention)"
            )
        if self._window.auto and abs(math.log(max(self._sigma, 1e-9) / self._plan.noise_level)) > 1:
            notes.append(
                f"recorded at noise level {self._sigma:.2f}, far from the best one, {self._plan.noise_level:.2f}"
            )
        return "; ".join(notes)

    def close(self) -> None:
        """Let go of everything that belongs to the model."""
        self._plan = self._percent_to_sigma = None

    def attention(self, entry: int) -> Attention:
        """The recording of one positive conditioning. Raises AttentionError when there is none, saying why."""
        if not self.order:
            raise AttentionError(
                "The sampler had no positive text conditioning, so there is no attention to words; give it an encoded prompt."
            )
        if not 0 <= entry < len(self.order):
            raise AttentionError(
                f"There is no conditioning number {entry}; this run had {len(self.order)}, counted from 0."
            )
        # Without a choice, a conditioning that was active in the window is better than none.
        chosen = [self.order[entry]] if entry else self.order
        uuid = next((candidate for candidate in chosen if candidate in self._means), None)
        if uuid is not None:
            return self._means[uuid]
        if self._cropped.intersection(chosen):
            raise AttentionError(
                "The recorded conditioning is limited to an area, so its map covers only part of the picture; limit it "
                "with a mask (Conditioning Set Mask, default area) instead."
            )
        if self._windowed:
            raise AttentionError(
                "The film was made a few frames at a time (context windows), so no map covers all of it; take the context "
                "window node off this MODEL, or make a shorter film."
            )
        raise AttentionError(f"Nothing was recorded: {self._why()}.")

    def _why(self) -> str:
        if not self._evaluations:
            return "the sampler never evaluated the model (no steps, or every step was skipped); let it run at least one step"
        if self._failure is not None:
            return (
                f"the picture was made, but recording stopped at {self._failure}; record fewer methods or a smaller "
                "picture, or report this"
            )
        if self._gate is not None and not self._targets:
            return (
                f"no step of this run ({len(self._sigmas) - 1} steps) falls into the step window from {self._window.start:g} to "
                f"{self._window.end:g}; widen it, or set the window to auto"
            )
        if self._unclear:
            return (
                f"the places of the words are not known, because {self._unclear}; take the node off that adds tokens to "
                "this MODEL or to its conditioning"
            )
        if self._blind:
            return (
                "the model ran without its attention being visible, because it is compiled or its attention is replaced as a whole; "
                "take the compile, acceleration or attention couple node off this MODEL"
            )
        return (
            "the conditioning was not active in the recorded step (its timestep range ends elsewhere), or a cache skipped the step; "
            "choose another step window or noise level"
        )


def _kept_tokens(length: int, words: Any) -> Tokens:
    """The words and special tokens of the prompt, one column for the rest; all tokens when the words are not known."""
    if words is None or words.length != length:
        # A map that does not fit (a conditioning joined with another) is reported where phrases are looked up.
        return Tokens(tuple(range(length)), False, length, words)
    kept = {position for word in words.words for position in word.positions} | set(words.special)
    return Tokens(tuple(sorted(kept)), len(kept) < length, length, words)
