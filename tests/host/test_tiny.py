"""The tiny models are sound before anything is recorded from them."""

from __future__ import annotations

import pytest
import torch

from . import tiny
from .device import repeated

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("name", tiny.MODELS)
def test_builds_and_samples(name: str) -> None:
    model, conditioning, channels, size, frames = tiny.build(name)
    start = tiny.latent(channels, 1, *size, frames)
    result = tiny.sample(model, conditioning(seed=1), conditioning(seed=2), start)
    assert result.shape == start.shape
    assert torch.isfinite(result).all()
    assert result.std() > 0


def test_same_seed_same_model() -> None:
    def sampled(built: tiny.Tiny) -> torch.Tensor:
        prompts = built.conditioning(), built.conditioning(seed=1)
        return tiny.sample(built.model, *prompts, tiny.latent(built.channels, batch=2))

    first, second = (tiny.build("sd15", seed=3) for _ in range(2))
    assert torch.equal(repeated(lambda: sampled(first)), sampled(second))
