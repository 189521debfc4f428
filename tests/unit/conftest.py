"""What the tests of the method share: the golden data, and random attention of the right shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from goca_core.capture.reduce import call as reduce

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


class Golden:
    """One golden file; arrays come as tensors, floats in single precision as they are stored."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as data:
            self._arrays = {key: data[key] for key in data.files}
        self.keys = set(self._arrays)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key].copy())

    def batch(self, key: str) -> Tensor:
        return self[key][None]

    def ids(self, key: str) -> list[int]:
        return [int(i) for i in self._arrays[key]]


@pytest.fixture(params=[1 << 21, 100])
def elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Attention is reduced in one block of rows, and in many."""
    monkeypatch.setattr(reduce, "_ELEMENTS", request.param)
    size: int = request.param
    return size


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    cache: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in cache:
            cache[name] = Golden(name)
        return cache[name]

    return load


@pytest.fixture(scope="session")
def closed_form() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((GOLDEN / "closed_form.json").read_text())
    return cases


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20260306)


@pytest.fixture
def attention(rng: torch.Generator) -> Callable[..., Tensor]:
    """Random softmax rows of the shape asked for."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (2 * torch.randn(*shape, generator=rng)).softmax(-1).to(dtype)

    return make
