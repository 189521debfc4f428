"""One sampling run under a regional pass: the base prompt until the masks are known, then each mask by its own prompt.

The prompts of the regions are put beside the base before ComfyUI prepares its conditionings, so that it treats them like
all others (text, ControlNets, sizes, hooks). They are not used until there are masks.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention.record import AttentionError
from ...batches import Workplace, latent_frames
from ...picture.batch import flatten
from ...pipeline import MaskRequest, MaskResult, make_masks, resolve_request
from ...regional import Conditioning, is_visible, merge_with_base, region_weights, regions_of
from ...tensors import resize_bilinear
from ...words.word_map import WordMap
from ..conditioning import length_of, words_of
from ..options import RecordOptions
from ..run import RecordingRun
from ..window import TOLERANCE, Before
from ..workplace import on_device
from .prompts import report

# Marks the entries of regions among the base's; its value is the number of the label.
_REGION = "goca_region"
_log = logging.getLogger("goca")
PreparedCond = dict[str, Any]
"""A conditioning as ComfyUI's guiders hold it: one dictionary, the text among its keys."""


@dataclass(frozen=True)
class RegionalPlan:
    """What a regional pass was asked for.

    ``request``: how masks are made. ``prompts``: the prompt of each label that has one, as text. ``start``: fraction of
    sampling from which regions work. ``evaluations``: how many evaluations before it are recorded and averaged. ``strength``,
    ``feather``: as in ``goca_core.regional``.
    """

    request: MaskRequest
    prompts: tuple[tuple[str, str], ...]
    start: float = 0.2
    evaluations: int = 2
    strength: float = 1.0
    feather: float = 0.0

    @property
    def window(self) -> Before:
        """Which evaluations are recorded."""
        return Before(False, 0.0, self.start, self.evaluations)


class RegionalRun(RecordingRun):
    """Records like any run; then makes the masks and lets ComfyUI go on with them."""

    def __init__(
        self,
        guider: Any,
        shape: Sequence[int],
        sigmas: Tensor,
        plan: RegionalPlan,
        options: RecordOptions,
        encoded: Sequence[Conditioning | None],
        words: WordMap | None,
    ) -> None:
        super().__init__(guider, shape, sigmas, plan.window, options)
        self._asked, self._encoded, self._words = plan, encoded, words
        self._first = {id(prompt): label for label, prompt in reversed(list(enumerate(encoded)))}
        self._name = "positive" if "positive" in guider.conds else next(iter(guider.conds), "")
        base: list[PreparedCond] = guider.conds.get(self._name, [])
        self._check(base)
        levels = self._window.targets(self._sigmas, 0.0, self._percent_to_sigma)
        end = float(self._percent_to_sigma(plan.start)) * (1 + TOLERANCE)
        # Masks are made at the first evaluation past all that are recorded, and not before the start.
        self._switch_sigma = min(end, min(levels, default=0.0) * (1 - TOLERANCE))
        self._waiting: list[PreparedCond] | None = None
        self.used: MaskResult | None = None
        self.report = self._trouble = ""
        guider.conds[self._name] = [*base, *self._regions(base)]

    def _check(self, base: Sequence[PreparedCond]) -> None:
        """Words that are not in the prompt are told before anything is sampled."""
        entry = next((entry for entry in base if "cross_attn" in entry), None)
        if entry is None:
            return  # nothing will be recorded, and that is told at the end
        recorded = words_of(entry["cross_attn"], entry)
        known = self._words or recorded
        if known is None:
            raise AttentionError(
                "Regional Pass needs to know the words of the prompt: encode the positive prompt with Encode Prompt (GoCA), "
                "or wire Prompt Words (GoCA) with the same CLIP and text into words."
            )
        known.check(length_of(entry["cross_attn"], entry))
        known.check_same(recorded)
        resolve_request(self._asked.request, known)

    def _regions(self, base: Sequence[PreparedCond]) -> Iterator[PreparedCond]:
        """The prompts of the regions for each entry of the base, as ComfyUI has them before it prepares them."""
        for label, prompt in enumerate(self._encoded):
            # Labels with the same prompt become one region, sampled once.
            if prompt is None or self._first[id(prompt)] != label:
                continue
            for extra in base:
                for tensor, own in merge_with_base(extra, prompt):
                    strength = self._asked.strength * extra.get("mask_strength", 1.0)
                    text = {"cross_attn": tensor, "model_conds": {}, "uuid": uuid.uuid4()}
                    yield {**own, **text, "mask_strength": strength, _REGION: label}

    # -- from the base to the regions -----------------------------------------------------------------------------------

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        super().begin_evaluation(guider, x, timestep)
        self._set_conditioning(guider, x)

    def _set_conditioning(self, guider: Any, x: Tensor) -> None:
        """Give the guider the conditioning of this evaluation: the base alone, or base and regions with their masks."""
        if self._waiting is None:
            entries = guider.conds[self._name]
            self._waiting = [entry for entry in entries if _REGION in entry]
            guider.conds[self._name] = [entry for entry in entries if _REGION not in entry]
        if self.used is not None or self._trouble:
            return
        if not self._means and not self.failed:
            return  # nothing was recorded yet; the next evaluation may be
        known = 0.0 if self.steps is None else self.steps.lowest
        if known > self._switch_sigma or self.sigma > self._switch_sigma:
            return
        try:
            self._use_regions(guider, x)
        except Exception as error:
            # The image is worth more than its regions.
            self._trouble = str(error)
            _log.warning("GoCA: Regional Pass went on with the base prompt alone: %s", error)

    def _use_regions(self, guider: Any, x: Tensor) -> None:
        record = self.attention(0)

        def make(place: Workplace) -> tuple[MaskResult, Tensor]:
            made = make_masks(record, self._asked.request, self._words, place=place)
            weights = region_weights(flatten(made.masks), len(made.labels), None, self._asked.feather)
            return made.to(place.results or record.device), weights

        found, parts = on_device(make)
        self.report = report(found.labels, dict(self._asked.prompts), parts)
        small = resize_bilinear(parts, (x.shape[-2], x.shape[-1])).to(x.device)
        if x.ndim == 5:
            # The axis of frames, of which some image models have one, comes before rows and columns.
            small = latent_frames(small, record).unflatten(0, (-1, record.frames)).movedim(1, 2)
        guider.conds[self._name] = self._masked(guider.conds[self._name], small)
        self.used = found

    def _masked(self, base: list[PreparedCond], parts: Tensor) -> list[PreparedCond]:
        """The base and the regions, each with its mask; the base as it is where no region covers anything."""
        strength = self._asked.strength
        weights = {self._first[id(prompt)]: weight for weight, prompt in regions_of(self._encoded, parts)}
        covering = [label for label, weight in weights.items() if is_visible(weight * strength)]
        if not covering:
            return base
        rest = (1 - strength * sum(weights.values())).clamp_min(0)
        # ComfyUI gives default entries what all others leave, which is just the rest.
        default = [entry for entry in base if entry.get("default")]
        plain = [_with(entry, rest) for entry in base if not entry.get("default")] if is_visible(rest) else []
        own = [entry for entry in self._waiting or () if entry[_REGION] in covering]
        return [*plain, *default, *(_with(entry, weights[entry[_REGION]]) for entry in own)]

    # -- results ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        super().close()
        self._waiting, self._encoded = None, ()
        if self.used is not None:
            self._means.clear()

    def masks(self) -> MaskResult:
        """The masks that were used. Raises AttentionError when there were none, saying why."""
        if self.used is not None:
            return self.used
        if self._trouble:
            raise AttentionError(f"The image was sampled with the base prompt alone: {self._trouble}")
        self.attention(0)  # says why nothing was recorded, if so
        raise AttentionError(
            f"No masks were used: sampling ended before a step past {self._asked.start:g} of it; let it run more steps, or "
            "lower start_percent."
        )


def _with(entry: Mapping[str, Any], weight: Tensor) -> PreparedCond:
    """An entry that ComfyUI has prepared, with a mask of the latent's size, within the one that it has already."""
    before = entry.get("mask")
    return {**entry, "mask": weight if before is None else before.to(weight) * weight}
