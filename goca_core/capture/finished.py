"""The cache of finished runs, found again by the latent that they returned."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Run = TypeVar("Run")
# Enough for graphs with many samplers, bounded for long sessions.
LIMIT = 8


class FinishedRuns(Generic[Run]):
    """The last ``LIMIT`` runs.

    They outlive their recorder: ComfyUI may forget a Record Attention node while it still remembers its sampler's result,
    and then asks a new recorder for a run that will not be repeated. So a run is found by what it was asked for (``key``)
    and by its latent.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[Hashable, str], Run] = OrderedDict()
        self._lock = threading.RLock()

    def add(self, key: Hashable, samples: Tensor, run: Run) -> None:
        """Keep a run that returned ``samples``; the oldest makes way."""
        with self._lock:
            for mark in _fingerprints(samples):
                self._runs.pop((key, mark), None)
                self._runs[key, mark] = run
            while len(self) > LIMIT:
                oldest = next(iter(self._runs.values()))
                for name in [name for name, kept in self._runs.items() if kept is oldest]:
                    del self._runs[name]

    def find(self, key: Hashable, samples: Tensor) -> Run | None:
        """The run that was asked for ``key`` and returned ``samples``."""
        with self._lock:
            names = ((key, mark) for mark in _fingerprints(samples))
            return next((self._runs[name] for name in names if name in self._runs), None)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._runs.clear()

    def __len__(self) -> int:
        return len({id(run) for run in self._runs.values()})


def _fingerprints(samples: Tensor) -> list[str]:
    """Marks of a latent that survive a change of device and of precision: ComfyUI may hand out half precision."""
    marks = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if samples.dtype not in (dtype, torch.float32, torch.float64):
            continue
        data = samples.detach().to("cpu", dtype).contiguous()
        digest = hashlib.sha256(data.view(torch.uint8).numpy().tobytes())
        marks.append(f"{dtype}{tuple(samples.shape)}{digest.hexdigest()}")
    return marks
