"""The tiny models are sound before anything is recorded from them."""

from __future__ import annotations

import pytest
import torch

from . import tiny
from .device import repeated
from .helpers import packed

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("name", tiny.MODELS)
def test_builds_and_samples(name: str) -> None:
    built = tiny.build(name)
    start = tiny.latent(built.channels, 1, *built.size, built.frames, built.sound)
    result = packed(tiny.sample(built.model, built.conditioning(seed=1), built.conditioning(seed=2), start))
    start = packed(start)
    assert result.shape == start.shape
    assert torch.isfinite(result).all()
    assert result.std() > 0


def test_same_seed_same_model() -> None:
    def sampled(built: tiny.Tiny) -> torch.Tensor:
        prompts = built.conditioning(), built.conditioning(seed=1)
        return tiny.sample(built.model, *prompts, tiny.latent(built.channels, batch=2))

    first, second = (tiny.build("sd15", seed=3) for _ in range(2))
    assert torch.equal(repeated(lambda: sampled(first)), sampled(second))
