"""The tiny models are sound before anything is recorded from them."""

from __future__ import annotations

import pytest
import torch

from . import tiny

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
    results = []
    for _ in range(2):
        model, conditioning, channels, *_ = tiny.build("sd15", seed=3)
        results.append(tiny.sample(model, conditioning(), conditioning(seed=1), tiny.latent(channels, batch=2)))
    assert torch.equal(*results)
