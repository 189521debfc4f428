"""Recording the negative prompt instead of the positive one."""

from __future__ import annotations

import pytest
import torch

from goca_core.attention.record import AttentionError
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record

from . import tiny
from .helpers import global_map, job, plain, words_of

pytestmark = pytest.mark.usefixtures("host")
NEGATIVE = RecordOptions(prompt="negative")


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_negative_prompt_has_the_maps_that_it_has_as_the_positive_one(name: str) -> None:
    """In the first step both see the same latent, whichever is which."""
    built = tiny.build(name)
    prompts = [
        [[cond, {**extra, "goca_words": words_of(text, cond.shape[1])}]]
        for seed, text in ((1, "a red cat"), (2, "blurry grass"))
        for cond, extra in built.conditioning(seed=seed)
    ]
    window = Window(False, 0.0, 1.0, 1)
    runs = (
        job(built, 2, positive=prompts[0], negative=prompts[1], steps=1),
        job(built, 2, positive=prompts[1], negative=prompts[0], steps=1),
    )
    expected = plain(built.model, runs[0])
    model, recorder = record(built.model, window, NEGATIVE)
    found = runs[0].run(model)["samples"]
    assert torch.equal(found, expected)
    recorded = recorder.collect(found)
    assert recorded.tokens.word_map().find("grass") == (2,)
    model, other = record(built.model, window)
    swapped = runs[1].run(model)["samples"]
    assert other.collect(swapped).tokens.word_map().find("grass") == (2,)
    assert torch.allclose(global_map(recorder, found), global_map(other, swapped), atol=1e-5)


def test_a_negative_prompt_that_is_not_evaluated() -> None:
    built = tiny.build("sd15")
    model, recorder = record(built.model, Window(), NEGATIVE)
    latent = job(built, steps=2, cfg=1.0).run(model)["samples"]
    with pytest.raises(AttentionError, match=r"did not evaluate the negative prompt .* CFG scale is 1"):
        recorder.collect(latent)
    with pytest.raises(ValueError, match="prompt"):
        RecordOptions(prompt="middle")
