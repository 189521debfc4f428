"""Regional prompts in one pass: masks from what the sampler has recorded so far, and prompts of their own from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...pipeline import MaskRequest
from ...regional import Conditioning, check_labels, parse_prompts
from ...words.match import PhraseError
from ...words.word_map import WordMap, label_of, parse_phrases
from ..finished import FinishedRuns
from .masking import MaskingRecorder
from .prompts import encode
from .run import RegionalPlan, RegionalRun


class RegionalPass(MaskingRecorder[RegionalRun]):
    """A recorder of its own, beside any other on the same MODEL, whose runs change their conditioning on the way."""

    key = "goca_regional_pass"
    plan: RegionalPlan
    finished = FinishedRuns()
    takes_sound = False  # ComfyUI limits no conditioning to a part of a packed latent
    _unknown = (
        "This LATENT was not made by a sampler with this regional pass: wire the MODEL that comes out of Regional Pass "
        "into the sampler, and the sampler's own LATENT, unchanged, into Collect Masks (only the last runs are kept)."
    )

    def __init__(
        self, plan: RegionalPlan, encoded: Sequence[Conditioning | None], words: WordMap | None = None
    ) -> None:
        super().__init__()
        self.plan, self._encoded, self._words = plan, encoded, words

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> RegionalRun:
        return RegionalRun(guider, shape, sigmas, self.plan, self._encoded, self._words)


def regional_pass(
    model: Any,
    clip: Any,
    request: MaskRequest,
    prompts: str,
    start: float = 0.2,
    evaluations: int = 2,
    strength: float = 1.0,
    feather: float = 0.0,
    words: WordMap | None = None,
) -> tuple[Any, RegionalPass]:
    """A copy of a MODEL that samples each phrase of a request with its own prompt, and the regions to collect masks from.

    prompts: lines ``phrase: prompt``, or bare prompts in the order of the phrases. Phrases without one follow the positive
    prompt of the sampler. The rest as in `RegionalPlan`. Raises RegionalError for prompts that do not fit the phrases, ValueError
    for a number out of range, UnknownFamily for a model whose attention cannot be recorded.
    """
    # As the masks will be called.
    phrases = parse_phrases(request.phrases) if isinstance(request.phrases, str) else request.phrases
    request = replace(request, phrases=tuple(phrases))
    labels = check_labels([label_of(parts) for parts in phrases])
    if not labels:
        raise PhraseError("No phrase was given: write words of the prompt, one object per line.")
    texts = parse_prompts(prompts, labels)
    chosen = tuple((label, texts[label]) for label in labels if label in texts)
    encoded = {text: encode(clip, text) for text in dict.fromkeys(texts.values())}
    plan = RegionalPlan(request, chosen, start, evaluations, strength, feather)
    used = RegionalPass(plan, [encoded.get(texts.get(label, "")) for label in labels], words)
    return used.install(model), used
