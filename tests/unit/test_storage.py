"""Weights in 8 bits: half the size, and close to what they were."""

from __future__ import annotations

import torch

from goca_core.demo.storage import SCALE, compress, expand


def test_matrices_survive_in_8_bits() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {
        "conv": torch.randn(96, 40, 3, 3, generator=draw) * torch.logspace(-4, 1, 96).view(-1, 1, 1, 1),
        "linear": torch.randn(64, 128, generator=draw),
        "bias": torch.randn(5000, generator=draw),
        "small": torch.randn(3, 4, generator=draw),
        "ids": torch.arange(9),
    }
    weights["linear"][5] = 0
    stored = compress(weights)
    assert stored["conv"].dtype == stored["linear"].dtype == torch.int8 and SCALE.join(("conv", "")) in stored
    assert stored["bias"].dtype == stored["small"].dtype == torch.float16 and stored["ids"].dtype == torch.int64
    found = expand(stored)
    assert set(found) == set(weights)
    for name in ("conv", "linear"):
        # Half a step of each row's scale, and the rounding of float16.
        allowed = weights[name].abs().flatten(1).amax(1) / 127 * 0.51 + 1e-6
        wrong = (found[name].float() - weights[name]).abs().flatten(1).amax(1)
        assert (wrong <= allowed + 0.001 * weights[name].abs().flatten(1).amax(1)).all()
        assert found[name].shape == weights[name].shape and found[name].dtype == torch.float16
    assert torch.equal(found["ids"], weights["ids"])
    size = sum(value.nbytes for value in stored.values())
    assert size < 0.55 * sum(value.numel() * 2 for value in weights.values() if value.ndim > 1) + 12_000


def test_weights_that_are_not_compressed_stay_as_they_are() -> None:
    weights = {"a.weight": torch.randn(4, 4).half(), "a.scale": torch.randn(4), "ids": torch.arange(3)}
    found = expand(weights)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
