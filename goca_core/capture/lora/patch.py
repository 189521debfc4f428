"""LoRA by mask: a LoRA that acts only inside a mask that is there before sampling."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ...words.word_map import WordMap
from ..families import temporal_compression
from ..forward import ForwardRecorder
from ..hooks import ModelCall, SamplingPatch, SamplingRun
from ..window import TOLERANCE
from .file import LoRA, fit
from .places import Placement
from .run import LoRACalls, MaskedLoRA, latent_masks, phrase_tokens

_numbers = itertools.count()


R = TypeVar("R", bound=SamplingRun)


class LoRAPatch(SamplingPatch[R], Generic[R]):
    """A patch whose runs let LoRAs act during each model call. Several may be on one MODEL."""

    takes_sound = False  # the network of such a model gets video and sound as one row of numbers

    def __init__(self) -> None:
        super().__init__()
        self.key = f"goca_lora_{next(_numbers)}"

    @abstractmethod
    def calls_of(self, run: R) -> LoRACalls:
        """The LoRAs of a run."""

    def around(self, run: R, call: ModelCall, text: Any) -> AbstractContextManager[None]:
        return self.calls_of(run).around(call, run.plan(call.model), text)


class MaskRun(SamplingRun):
    """A run in which one LoRA acts inside a mask. Nothing is recorded."""

    def __init__(self, batch: int, lora: MaskedLoRA, start: float) -> None:
        super().__init__(batch)
        self._all, self._start = LoRACalls([lora]), start
        # Before the start none acts. From the first step on, noise levels need not be read.
        self.calls = self._all if start == math.inf else LoRACalls([])

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        super().begin_evaluation(guider, x, timestep)
        if self.calls is not self._all and self.sigma <= self._start:
            self.calls = self._all
        self.calls.see(guider.conds)

    def recorders(self, call: ModelCall) -> list[ForwardRecorder]:
        return []

    def commit(self, recorders: list[ForwardRecorder], call: ModelCall) -> None:
        raise AssertionError("nothing is recorded")


class LoRAByMask(LoRAPatch[MaskRun]):
    """A LoRA inside a mask.

    mask: [M, h, w]. phrase: the words of the prompt whose text tokens take part, empty for none in particular. start: the
    fraction of sampling from which it acts.
    """

    def __init__(
        self,
        lora: LoRA,
        strength: float,
        mask: Tensor,
        feather: float = 0.0,
        phrase: str = "",
        words: WordMap | None = None,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        self._start = start
        self.lora, self._strength, self._mask, self._feather = lora, strength, mask, feather
        self._phrase, self._words = phrase.strip(), words

    def calls_of(self, run: MaskRun) -> LoRACalls:
        return run.calls

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> MaskRun:
        each = temporal_compression(guider.model_patcher.model)
        image = latent_masks(self._mask, shape, self._feather, each)
        positive: list[Any] = guider.conds.get("positive") or next(iter(guider.conds.values()), [])
        tokens = phrase_tokens(self._phrase, positive, self._words) if self._phrase else None
        lora = MaskedLoRA(self.lora, self._strength, Placement(image, tokens))
        start = math.inf
        if self._start > 0:
            sampling = guider.model_patcher.get_model_object("model_sampling")
            start = float(sampling.percent_to_sigma(self._start)) * (1 + TOLERANCE)
        return MaskRun(shape[0], lora, start)

    def finish_run(self, run: MaskRun, samples: Tensor) -> None:
        run.calls.close()


def lora_by_mask(
    model: Any,
    file: str | Path,
    strength: float,
    mask: Tensor,
    feather: float = 0.0,
    phrase: str = "",
    words: WordMap | None = None,
    start: float = 0.0,
) -> tuple[Any, LoRA]:
    """A copy of a MODEL on which a LoRA file acts inside a mask, and what of the file takes part.

    Raises LoRAError for a file that does not fit, UnknownFamily for a model whose tokens have no known places.
    """
    lora = fit(model, file)
    return LoRAByMask(lora, strength, mask, feather, phrase, words, start).install(model), lora
