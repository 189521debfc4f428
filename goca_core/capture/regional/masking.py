"""A sampling run that makes masks from what it has recorded so far, and goes on with them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from ...attention.record import AUTO, Attention, AttentionError
from ...batches import Workplace
from ...picture.batch import flatten
from ...pipeline import MaskRequest, MaskResult, make_masks, resolve_request
from ...regional import region_weights
from ...words.word_map import WordMap
from ..conditioning import length_of, words_of
from ..options import RecordOptions
from ..recorder import RunRecorder
from ..run import RecordingRun
from ..window import TOLERANCE, Before
from ..workplace import on_device

_log = logging.getLogger("goca")
PreparedCond = dict[str, Any]
"""A conditioning as ComfyUI's guiders hold it: one dictionary, the text among its keys."""


class MaskingRun(RecordingRun):
    """Records like any run; then makes the masks and hands them to `use`.

    ``node``: its name in messages. ``renews``: whether masks are made again of what is recorded after the first time.
    ``without``: what the image is sampled with where there are no masks. ``feather``: as in ``goca_core.regional``.
    """

    node: str
    without: str
    renews = False

    def __init__(
        self,
        guider: Any,
        shape: Sequence[int],
        sigmas: Tensor,
        request: MaskRequest,
        window: Before,
        feather: float,
        words: WordMap | None,
    ) -> None:
        super().__init__(guider, shape, sigmas, window, RecordOptions(method=AUTO))
        # Things are still forming, so nobody can say yet that one is absent.
        self._request = replace(request, skip_absent=False)
        self._start, self._feather, self._words = window.end, feather, words
        self._name = "positive" if "positive" in guider.conds else next(iter(guider.conds), "")
        self._check(guider.conds.get(self._name, []))
        levels = window.first(self._sigmas, self._percent_to_sigma)
        end = float(self._percent_to_sigma(window.end)) * (1 + TOLERANCE)
        # Masks are made at the first evaluation past all that are recorded, and not before the start.
        self._switch_sigma = min(end, min(levels, default=0.0) * (1 - TOLERANCE))
        self.used: MaskResult | None = None
        self.report = self._trouble = ""

    def _check(self, base: Sequence[PreparedCond]) -> None:
        """Words that are not in the prompt are told before anything is sampled."""
        entry = next((entry for entry in base if "cross_attn" in entry), None)
        if entry is None:
            return  # nothing will be recorded, and that is told at the end
        recorded = words_of(entry["cross_attn"], entry)
        known = self._words or recorded
        if known is None:
            raise AttentionError(
                f"{self.node} needs to know the words of the prompt: encode the positive prompt with Encode Prompt (GoCA), "
                "or wire Prompt Words (GoCA) with the same CLIP and text into words."
            )
        known.check(length_of(entry["cross_attn"], entry))
        known.check_same(recorded)
        resolve_request(self._request, known)

    # -- from the recording to the masks ----------------------------------------------------------------------------------

    @abstractmethod
    def use(self, guider: Any, x: Tensor, record: Attention, found: MaskResult, parts: Tensor) -> None:
        """Go on with masks. ``parts``: [B, K + 1, H, W], how much each counts at each pixel, and last how much none does."""

    def switch(self, guider: Any, x: Tensor) -> None:
        """Make the masks, if this evaluation is the one for it."""
        if self._trouble or (self.used is not None and not self.renews):
            return
        if not self._means and not self.failed:
            return  # nothing was recorded yet; the next evaluation may be
        known = 0.0 if self.steps is None else self.steps.lowest
        if self.used is None and (known > self._switch_sigma or self.sigma > self._switch_sigma):
            return
        try:
            self._make(guider, x)
        except Exception as error:
            # The image is worth more than its masks.
            self._trouble = str(error)
            _log.warning("GoCA: %s went on with %s: %s", self.node, self.without, error)

    def _make(self, guider: Any, x: Tensor) -> None:
        record = self.attention(0)

        def make(place: Workplace) -> tuple[MaskResult, Tensor]:
            made = make_masks(record, self._request, self._words, place=place)
            weights = region_weights(flatten(made.masks), len(made.labels), None, self._feather)
            return made.to(place.results or record.device), weights

        found, parts = on_device(make)
        self.use(guider, x, record, found, parts)
        self.used = found
        # What is recorded from here on makes new masks.
        self._means.clear()

    # -- results ----------------------------------------------------------------------------------------------------

    def masks(self) -> MaskResult:
        """The masks that were used last. Raises AttentionError with one sentence when there were none, saying why."""
        if self.used is not None:
            return self.used
        if self._trouble:
            raise AttentionError(f"The image was sampled with {self.without}: {self._trouble}")
        self.attention(0)  # says why nothing was recorded, if so
        raise AttentionError(
            f"No masks were used: sampling ended before a step past {self._start:g} of it; let it run more steps, or "
            "lower start_percent."
        )


R = TypeVar("R", bound=MaskingRun)


class MaskingRecorder(RunRecorder[R]):
    """A patch whose runs make masks on the way, to be collected afterwards. ``plan``: what was asked for."""

    plan: Hashable

    @property
    def asked(self) -> Hashable:
        return self.plan

    def masks(self, samples: Tensor) -> tuple[MaskResult, str]:
        """The masks that were used for ``samples`` (of a LATENT), and lines that say for what.

        Raises AttentionError with one sentence when there were none, saying why.
        """
        run = self.find(samples)
        return run.masks(), run.report
