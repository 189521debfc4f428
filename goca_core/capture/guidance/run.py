"""One sampling run with semantic guidance: the recording of each evaluation, and the regions computed from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...attention.record import AUTO, Affinity, Attention, AttentionError, Tokens
from ...guidance.semantic import (
    PlainLayer,
    Regions,
    Settings,
    background_token,
    candidates,
    goca_regions,
    join,
    published_regions,
)
from ...layers import MASS_PRESERVING
from ...tensors import CPUS, Grid, resize_nearest
from ...words.word_map import WordMap
from ..conditioning import length_of, words_of
from ..families import vae_scale
from ..families.base import Plan
from ..forward import ForwardRecorder
from ..hooks import ModelCall, SamplingRun
from ..options import RecordOptions
from ..reduce.cond_recorder import CondRecording
from ..window import TOLERANCE
from . import together

# S-CFG's regions come from the two coarsest levels (16² and 8² tokens in SD 1.5 at 512 pixels), whose self-attention is
# multiplied by itself. Larger maps, or more layers than SD 1.5 has there, would cost more than sampling.
_LARGEST, _MOST = 1024, 12
_log = logging.getLogger("goca")


class GuidanceRun(SamplingRun):
    """Records each evaluation and forgets the recording when the evaluation ends."""

    def __init__(
        self, guider: Any, shape: Sequence[int], settings: Settings, window: tuple[float, float], words: WordMap | None
    ) -> None:
        super().__init__(shape[0])
        self._settings = settings
        self._size: Grid = (shape[-2], shape[-1])
        self._scale = 8
        patcher = guider.model_patcher
        plan = self.plan(patcher.model)
        to_sigma = patcher.get_model_object("model_sampling").percent_to_sigma
        # The tolerance is that of the step windows, so the same percentage means the same step in all nodes.
        high, low = (float(to_sigma(percent)) for percent in window)
        self._window = low * (1 - TOLERANCE), high * (1 + TOLERANCE)
        # A window over all of sampling holds every level, which then need not be read.
        self._always = window[0] <= 0 and window[1] >= 1
        self.tokens, self._defaults = self._tokens_to_keep(guider.conds, words), plan.defaults
        if settings.rule == "GoCA":
            head = plan.defaults.head if settings.head == AUTO else settings.head
            layer = plan.defaults.layer if settings.layer == AUTO else settings.layer
            layer = "dot-product similarity" if layer == MASS_PRESERVING else layer
            self._options = RecordOptions((head,), (layer,))
        else:
            self._options = RecordOptions(("average",), ("vanilla",), full_affinity=True, affinity_parts=True)
            _coarse_layers(plan, self._size)  # raises now if there are none
        self._found: dict[Any, Any] = {}
        # By the first recorder of a call, because several GPUs run calls at the same time.
        self._calls: dict[int, tuple[together.Groups, together.Rows]] = {}
        self._warned = self._broken = False
        self.working = False
        # Regions of an earlier evaluation, and how many evaluations they have been used in.
        self._last: Regions | None = None
        self._age = 0

    def _tokens_to_keep(self, conds: Mapping[str, list[dict[str, Any]]], given: WordMap | None) -> dict[Any, Tokens]:
        """The tokens to keep of each conditioning that is recorded."""
        entries = [(name, e, length_of(e["cross_attn"], e)) for name in conds for e in conds[name] if "cross_attn" in e]
        if self._settings.rule != "GoCA":
            return {e["uuid"]: Tokens(tuple(range(length)), False, length) for _, e, length in entries}
        positive = {}
        for name, entry, length in entries:
            words = words_of(entry["cross_attn"], entry) or (
                given if given is not None and given.length == length else None
            )
            if name != "negative" and words is not None and words.length == length:
                positive[entry["uuid"]] = _tokens_for_regions(words)
        if not positive:
            raise AttentionError(
                "GoCA's regions need the words of the prompt; encode the positive prompt with Encode Prompt (GoCA), connect "
                "Prompt Words (GoCA) with the same CLIP and text to words, or choose S-CFG's regions."
            )
        background = background_token(
            next(words for tokens in positive.values() if (words := tokens.words) is not None)
        )
        if background is not None and background[0] == "negative":
            for name, entry, length in entries:
                if name == "negative":
                    positive[entry["uuid"]] = Tokens((background[1],), length > 1, length)
        return positive

    # -- recording ------------------------------------------------------------------------------------------------------

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        super().begin_evaluation(guider, x, timestep)
        self._found = {}
        low, high = self._window
        self.working = not self._broken and (self._always or low <= self.sigma <= high)

    def end_evaluation(self) -> None:
        if self.working:
            self._age += 1
            if self._age >= self._settings.renew_every:
                self._last, self._age = None, 0
        self._found, self.working = {}, False
        self._calls.clear()

    def recorders(self, call: ModelCall) -> list[ForwardRecorder]:
        whole = call.frames == 1 and call.shape[-2:] == self._size
        rows = self._main_rows(call) if self.working and whole and self._last is None else {}
        if not rows:
            return []
        self._seen.update(rows)
        self._scale = vae_scale(call.model)
        # On a CPU kernels start at once, and separate recordings need less memory at a time.
        groups = together.alone(rows) if call.x.device.type in CPUS else together.grouped(rows)
        recorders = [
            ForwardRecorder(plan, self._options, groups, self._size, call.x.shape[0], given=call.given)
            for plan in self._recorded_plans(call.model)
        ]
        self._calls[id(recorders[0])] = groups, rows
        return recorders

    def _recorded_plans(self, model: Any) -> list[Plan]:
        """What is recorded of a network; several GPUs run copies of it."""
        plan = self.plan(model)
        if self._settings.rule == "GoCA":
            return [plan]
        return _coarse_layers(plan, self._size)

    def commit(self, recorders: list[ForwardRecorder], call: ModelCall) -> None:
        """Keep the recordings of this call's conditionings until the evaluation ends."""
        groups, rows = self._calls.pop(id(recorders[0]))
        failure = next((forward.failure for forward in recorders if forward.failure is not None), None)
        if failure is not None:
            self.give_up(failure)
            return
        # On the model's device: to bring it to the CPU at every step, and the rate back, takes longer than the step.
        results = [together.parts(forward.results(on_device=True), groups, rows) for forward in recorders]
        for uuid, (first, tokens) in results[0].items():
            if self._settings.rule == "GoCA":
                if first.layers:
                    self._found[uuid] = self._record(first, tokens)
            else:
                layers = [layer for result in results for layer in _plain_layers(result[uuid][0])]
                if layers:
                    self._found[uuid] = layers

    def _record(self, result: CondRecording, tokens: Tokens) -> Attention:
        height, width = result.affinity_grid
        affinity = None if result.affinity is None else Affinity(height, width, result.affinity)
        return Attention(
            self._family,
            *self._size,
            self._scale,
            tuple(result.layers.values()),
            tokens,
            self._defaults,
            affinity,
        )

    # -- regions ----------------------------------------------------------------------------------------------------

    def regions(self, positive: Iterable[Mapping[str, Any]], negative: Iterable[Mapping[str, Any]]) -> Regions | None:
        """Regions of this evaluation at the size of the latent, or None to use plain guidance."""
        if self._last is None:
            self._last, self._age = self._new_regions(positive, negative), 0
        return self._last

    def _new_regions(
        self, positive: Iterable[Mapping[str, Any]], negative: Iterable[Mapping[str, Any]]
    ) -> Regions | None:
        recorded = [(entry, self._found[entry["uuid"]]) for entry in positive if entry["uuid"] in self._found]
        background = next((self._found[entry["uuid"]] for entry in negative if entry["uuid"] in self._found), None)
        found = [(entry, self._regions_of(record, background)) for entry, record in recorded]
        parts = [(part, entry) for entry, part in found if part is not None]
        if not recorded:
            self._warn(
                "the attention to the prompt was not recorded (the call was cached, cropped, replaced or not active)"
            )
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0][0]
        device = parts[0][0].masks.device
        return join([part for part, _ in parts], [self._weight(entry, device) for _, entry in parts])

    def _regions_of(self, record: Any, background: Any) -> Regions | None:
        if self._settings.rule == "GoCA":
            return goca_regions(record, background, self._settings)
        if background is None:
            return None
        part = published_regions(record, background, self._settings.ties)
        return Regions(resize_nearest(part.masks, self._size), resize_nearest(part.foreground, self._size))

    def _weight(self, entry: Mapping[str, Any], device: torch.device) -> Tensor:
        """ComfyUI's weight of this conditioning at each latent cell, [B, h, w]. ComfyUI has put its mask on the device."""
        weight = torch.full((self.batch, *self._size), float(entry.get("strength", 1.0)), device=device)
        mask = entry.get("mask")
        if mask is None:
            return weight
        mask = mask.reshape(-1, *self._size)[: self.batch].to(device, torch.float32) * float(
            entry.get("mask_strength", 1.0)
        )
        return weight * mask.repeat(self.batch // mask.shape[0], 1, 1)

    def give_up(self, why: str) -> None:
        """Use plain guidance for the rest of the run: what does not fit into memory now will not fit in a later step."""
        self._warn(why)
        self._broken, self.working = True, False

    def _warn(self, why: str) -> None:
        """Log, once per run, that a step without regions uses plain guidance; sampling goes on."""
        if not self._warned:
            _log.warning("GoCA: Semantic CFG fell back to plain CFG at noise level %.3g: %s.", self.sigma, why)
        self._warned = True


def _tokens_for_regions(words: WordMap) -> Tokens:
    """The tokens that pixels can be assigned to and the background token; one column for all others."""
    kept = set(candidates(words))
    background = background_token(words)
    if background is not None:
        kept.add(background[1])
    return Tokens(tuple(sorted(kept)), len(kept) < words.length, words.length, words)


def _plain_layers(result: CondRecording) -> list[PlainLayer]:
    """The layers of a plan whose blocks have one size."""
    return [
        PlainLayer(layer.height, layer.width, layer.maps["average"], result.affinity_parts[name])
        for name, layer in result.layers.items()
        if result.affinity_grid == (layer.height, layer.width) and name in result.affinity_parts
    ]


def _coarse_layers(plan: Plan, size: Grid) -> list[Plan]:
    """The layers that S-CFG's regions use, as one plan for each size, because all self-attention of a plan has one size."""

    def tokens(level: int) -> int:
        height, width = plan.grid(level, *size)
        return height * width

    coarsest = sorted({block.level for block in plan.blocks})[-2:]
    blocks = [block for block in plan.blocks if block.level in coarsest and tokens(block.level) <= _LARGEST]
    if not blocks:
        raise AttentionError(
            f"S-CFG's regions need layers of at most {_LARGEST} tokens, but the model has none at this size; choose GoCA's "
            "regions or a smaller image."
        )
    blocks = blocks[:: -(-len(blocks) // _MOST)]
    plans = []
    for level in dict.fromkeys(block.level for block in blocks):
        own = tuple(block for block in blocks if block.level == level)
        plans.append(replace(plan, blocks=own, reference=own[0].name, affinity=tuple(block.name for block in own)))
    return plans
