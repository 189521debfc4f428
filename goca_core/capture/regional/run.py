"""One sampling run under a regional pass: the base prompt until the masks are known, then each mask by its own prompt.

The prompts of the regions are put beside the base before ComfyUI prepares its conditionings, so that it treats them like
all others (text, ControlNets, sizes, hooks). They are not used until there are masks.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention.record import Attention
from ...batches import latent_frames
from ...pipeline import MaskRequest, MaskResult
from ...regional import Conditioning, is_visible, merge_with_base, regions_of
from ...tensors import resize_bilinear
from ...words.word_map import WordMap
from ..window import Before
from .masking import MaskingRun, PreparedCond
from .prompts import report

# Marks the entries of regions among the base's; its value is the number of the label.
_REGION = "goca_region"


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


class RegionalRun(MaskingRun):
    """Records like any run; then makes the masks and lets ComfyUI go on with them."""

    node, without = "Regional Pass", "the base prompt alone"

    def __init__(
        self,
        guider: Any,
        shape: Sequence[int],
        sigmas: Tensor,
        plan: RegionalPlan,
        encoded: Sequence[Conditioning | None],
        words: WordMap | None,
    ) -> None:
        super().__init__(guider, shape, sigmas, plan.request, plan.window, plan.feather, words)
        self._asked, self._encoded = plan, encoded
        self._first = {id(prompt): label for label, prompt in reversed(list(enumerate(encoded)))}
        self._waiting: list[PreparedCond] | None = None
        base: list[PreparedCond] = guider.conds.get(self._name, [])
        guider.conds[self._name] = [*base, *self._regions(base)]

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
        self.switch(guider, x)

    def use(self, guider: Any, x: Tensor, record: Attention, found: MaskResult, parts: Tensor) -> None:
        self.report = report(found.labels, dict(self._asked.prompts), parts)
        small = resize_bilinear(parts, (x.shape[-2], x.shape[-1])).to(x.device)
        if x.ndim == 5:
            # The axis of frames, of which some image models have one, comes before rows and columns.
            small = latent_frames(small, record).unflatten(0, (-1, record.frames)).movedim(1, 2)
        guider.conds[self._name] = self._masked(guider.conds[self._name], small)

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

    def close(self) -> None:
        super().close()
        self._waiting, self._encoded = None, ()


def _with(entry: Mapping[str, Any], weight: Tensor) -> PreparedCond:
    """An entry that ComfyUI has prepared, with a mask of the latent's size, within the one that it has already."""
    before = entry.get("mask")
    return {**entry, "mask": weight if before is None else before.to(weight) * weight}
