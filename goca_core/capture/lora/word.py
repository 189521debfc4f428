"""LoRA by word: each LoRA inside the mask of its phrase, found on the way in one sampling run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attention.record import Attention
from ...pipeline import MaskRequest, MaskResult
from ...words.match import PhraseError
from ...words.text import fold
from ...words.word_map import WordMap, label_of, parse_phrases
from ..families import temporal_compression
from ..finished import FinishedRuns
from ..regional.masking import MaskingRecorder, MaskingRun
from ..window import Renewed
from .file import LoRA, LoRAError, fit
from .patch import LoRAPatch
from .places import Placement
from .run import LoRACalls, MaskedLoRA, latent_masks

KEY = "goca_lora_by_word"


@dataclass(frozen=True)
class WordLoRA:
    """A LoRA with its phrase: ``label`` as masks are named, ``file`` with the time of its last change."""

    label: str
    file: str
    changed: int
    strength: float


@dataclass(frozen=True)
class WordPlan:
    """What was asked for.

    ``request``: how masks are made, with the phrases of all LoRAs. ``loras``: one for each phrase. ``start``: fraction of
    sampling from which each LoRA acts inside its mask. ``before``: share of its strength with which it acts everywhere until
    then. ``evaluations``: how many evaluations before the start are recorded. ``renew_every``: evaluations between new masks,
    0 = the first masks stay. ``feather``: as in ``goca_core.regional``.
    """

    request: MaskRequest
    loras: tuple[WordLoRA, ...]
    start: float = 0.3
    before: float = 0.0
    evaluations: int = 2
    renew_every: int = 0
    feather: float = 0.0

    @property
    def window(self) -> Renewed:
        """Which evaluations are recorded."""
        return Renewed(False, 0.0, self.start, self.evaluations, self.renew_every)


class WordRun(MaskingRun):
    """Records like any run; then lets each LoRA act inside its mask."""

    node, without = "LoRA by Word", "the LoRAs as before their start"

    def __init__(
        self,
        guider: Any,
        shape: Sequence[int],
        sigmas: Tensor,
        plan: WordPlan,
        loras: Sequence[LoRA],
        words: WordMap | None,
    ) -> None:
        super().__init__(guider, shape, sigmas, plan.request, plan.window, plan.feather, words)
        self.renews = plan.renew_every > 0
        self._shape, self._asked = tuple(shape), plan
        self._each = temporal_compression(guider.model_patcher.model)
        every = Placement(torch.ones(shape[0], shape[2] if len(shape) == 5 else 1, *shape[-2:]), factor=plan.before)
        self.calls = LoRACalls(
            [MaskedLoRA(lora, asked.strength, every) for lora, asked in zip(loras, plan.loras, strict=True)]
        )

    def begin_evaluation(self, guider: Any, x: Tensor, timestep: Tensor | float) -> None:
        super().begin_evaluation(guider, x, timestep)
        self.calls.see(guider.conds)
        self.switch(guider, x)

    def use(self, guider: Any, x: Tensor, record: Attention, found: MaskResult, parts: Tensor) -> None:
        lines = []
        for number, (lora, asked, phrase) in enumerate(
            zip(self.calls.loras, self._asked.loras, found.objects, strict=True)
        ):
            image = latent_masks(parts[:, number].cpu(), self._shape, 0.0, self._each)
            # Each positive conditioning was recorded with the same words.
            words = dict.fromkeys(self.tokens, phrase.tokens)
            lora.place(Placement(image, words))
            area = float(parts[:, number].mean())
            lines.append(f"{phrase.label} ({area:.1%}): {asked.file} at {asked.strength:g}")
        self.report = "\n".join(lines)

    def close(self) -> None:
        super().close()
        self.calls.close()
        self.calls = LoRACalls([])  # a finished run is kept, and its LoRAs would take memory


class LoRAByWord(LoRAPatch[WordRun], MaskingRecorder[WordRun]):
    """LoRAs that find their masks during the run. A second one on the same MODEL takes over those of the first."""

    plan: WordPlan
    finished = FinishedRuns()
    _unknown = (
        "This LATENT was not made by a sampler with this LoRA by Word: wire the MODEL that comes out of the last LoRA by Word "
        "into the sampler, and the sampler's own LATENT, unchanged, into Collect Masks (only the last runs are kept)."
    )

    def __init__(self, plan: WordPlan, loras: Sequence[LoRA], words: WordMap | None = None) -> None:
        super().__init__()
        self.key = KEY
        self.plan, self.loras, self._words = plan, tuple(loras), words

    @property
    def words(self) -> WordMap | None:
        return self._words

    def calls_of(self, run: WordRun) -> LoRACalls:
        return run.calls

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> WordRun:
        return WordRun(guider, shape, sigmas, self.plan, self.loras, self._words)


def lora_by_word(
    model: Any,
    file: str | Path,
    phrase: str,
    strength: float,
    plan: WordPlan | None = None,
    words: WordMap | None = None,
) -> tuple[Any, LoRAByWord, LoRA]:
    """A copy of a MODEL on which a LoRA file acts inside the mask of a phrase, the masks to collect, and what takes part.

    Earlier ones on the MODEL stay; their phrases share the image with this one. All follow the last plan, of which only the
    settings are read. Raises LoRAError, PhraseError or UnknownFamily with one sentence for what does not fit.
    """
    plan = plan or WordPlan(MaskRequest(""), ())
    parts = parse_phrases(phrase)
    if len(parts) != 1:
        raise PhraseError(
            f"A LoRA has one phrase, and here are {len(parts)}: write words of the prompt in one line, and use a LoRA by Word "
            "node for each LoRA."
        )
    lora, label = fit(model, file), label_of(parts[0])
    path = Path(file)
    own = WordLoRA(label, path.name, path.stat().st_mtime_ns, strength)
    before = _earlier(model)
    known = () if before is None else before.plan.loras
    for other in known:
        if _same(other.label, label):
            raise LoRAError(
                f'The phrase "{label}" has two LoRAs, {other.file} and {own.file}; give each a phrase of its own, or load one '
                "of them with LoRA by Mask."
            )
    asked = (*(() if before is None else before.plan.request.phrases), parts[0])
    plan = replace(plan, request=replace(plan.request, phrases=tuple(asked)), loras=(*known, own))
    loras = (*(() if before is None else before.loras), lora)
    made = LoRAByWord(plan, loras, words or (None if before is None else before.words))
    return made.install(model), made, lora


def _same(one: str, other: str) -> bool:
    return fold(one).split() == fold(other).split()


def _earlier(model: Any) -> LoRAByWord | None:
    """The LoRAs by word that a MODEL has already."""
    from comfy.patcher_extension import WrappersMP

    found = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return found[0].__self__ if found else None
