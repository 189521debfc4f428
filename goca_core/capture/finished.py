"""The finished-run cache: recordings are looked up by the latent that their run returned."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Run = TypeVar("Run")
# Enough for graphs with many samplers, and bounded so that long sessions do not fill the memory.
LIMIT = 8


class FinishedRuns(Generic[Run]):
    """The last ``LIMIT`` runs.

    Runs outlive their recorder. ComfyUI may drop the cached output of a Record Attention node but keep that of the
    sampler; the new recorder is then asked for a run that is not repeated. So runs are found by the settings they were
    recorded with (``key``) and by their latent.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[Hashable, str], Run] = OrderedDict()
        self._lock = threading.RLock()

    def add(self, key: Hashable, samples: Tensor, run: Run) -> None:
        """Keep a run that returned ``samples``; the oldest run is dropped if there are too many."""
        with self._lock:
            for mark in _fingerprints(samples):
                self._runs.pop((key, mark), None)
                self._runs[key, mark] = run
            while len(self) > LIMIT:
                oldest = next(iter(self._runs.values()))
                for name in [name for name, kept in self._runs.items() if kept is oldest]:
                    del self._runs[name]

    def find(self, key: Hashable, samples: Tensor) -> Run | None:
        """The run that was recorded with the settings ``key`` and returned ``samples``."""
        with self._lock:
            names = ((key, mark) for mark in _fingerprints(samples))
            return next((self._runs[name] for name in names if name in self._runs), None)

    def clear(self) -> None:
        """Drop all runs."""
        with self._lock:
            self._runs.clear()

    def __len__(self) -> int:
        return len({id(run) for run in self._runs.values()})


def _fingerprints(samples: Tensor) -> list[str]:
    """Hashes of a latent that do not depend on device or precision: ComfyUI may hand it out in half precision."""
    marks = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if samples.dtype not in (dtype, torch.float32, torch.float64):
            continue
        data = samples.detach().to("cpu", dtype).contiguous()
        digest = hashlib.sha256(data.view(torch.uint8).numpy().tobytes())
        marks.append(f"{dtype}{tuple(samples.shape)}{digest.hexdigest()}")
    return marks
