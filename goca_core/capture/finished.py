"""The finished-run cache: recordings are looked up by the latent that their run returned."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Run = TypeVar("Run")
# A recording of one SD image takes a few MB, one of four Flux images a quarter of this.
LIMIT = 2**30
# A list of latents is sampled as a whole before anything is collected.
WAITING_LIMIT = 8 * 2**30


@dataclass
class _Kept(Generic[Run]):
    """A finished run: its size, the graph execution that it belongs to, and whether it was looked up since."""

    run: Run
    nbytes: int
    execution: str | None
    found: bool = False


class FinishedRuns(Generic[Run]):
    """The last runs, as many as fit into ``limit`` bytes; the newest one always.

    Runs of the current graph execution that were not looked up yet are kept beyond it, up to ``waiting_limit`` bytes.

    Runs outlive their recorder. ComfyUI may drop the cached output of a Record Attention node but keep that of the
    sampler; the new recorder is then asked for a run that is not repeated. So runs are found by the settings they were
    recorded with (``key``) and by their latent.

    >>> runs = FinishedRuns()
    >>> runs.add("settings", [torch.zeros(1, 4, 8, 8)], {"maps": torch.zeros(1, 64, 77)})
    >>> runs.nbytes, runs.find("settings", torch.zeros(1, 4, 8, 8)) is not None, runs.find("others", torch.zeros(1, 4, 8, 8))
    (19712, True, None)
    """

    def __init__(self, limit: int = LIMIT, waiting_limit: int = WAITING_LIMIT) -> None:
        self.limit, self.waiting_limit = limit, waiting_limit
        self._runs: OrderedDict[tuple[Hashable, str], _Kept[Run]] = OrderedDict()
        self._lock = threading.RLock()

    def add(self, key: Hashable, latents: Sequence[Tensor], run: Run) -> None:
        """Keep a run that returned these latents, each [B, C, ...]; the oldest runs are dropped if they take too much memory."""
        kept = _Kept(run, held_bytes(run), _execution())
        with self._lock:
            for latent in latents:
                for mark in _fingerprints(latent):
                    self._runs.pop((key, mark), None)
                    self._runs[key, mark] = kept
            self._drop(kept)

    def _drop(self, newest: _Kept[Run]) -> None:
        """Forget runs, the oldest first, until the others fit."""

        def waits(kept: _Kept[Run]) -> bool:
            return kept.execution is not None and kept.execution == newest.execution and not kept.found

        kept = self._kept()
        total = sum(each.nbytes for each in kept)
        dropped: set[int] = set()
        for limit, candidates in (
            (self.limit, [each for each in kept if not waits(each)]),
            (self.waiting_limit, kept),
        ):
            for each in candidates:
                if total > limit and each is not newest and id(each) not in dropped:
                    dropped.add(id(each))
                    total -= each.nbytes
        for name in [name for name, each in self._runs.items() if id(each) in dropped]:
            del self._runs[name]

    def find(self, key: Hashable, samples: Tensor) -> Run | None:
        """The run that was recorded with the settings ``key`` and returned ``samples``."""
        with self._lock:
            names = ((key, mark) for mark in _fingerprints(samples))
            kept = next((self._runs[name] for name in names if name in self._runs), None)
            if kept is None:
                return None
            kept.found = True
            return kept.run

    def clear(self) -> None:
        """Drop all runs."""
        with self._lock:
            self._runs.clear()

    @property
    def nbytes(self) -> int:
        """Memory of all runs that are kept."""
        with self._lock:
            return sum(kept.nbytes for kept in self._kept())

    def __len__(self) -> int:
        return len(self._kept())

    def _kept(self) -> list[_Kept[Run]]:
        """Each run once, the oldest first."""
        return list({id(kept): kept for kept in self._runs.values()}.values())


def held_bytes(thing: Any) -> int:
    """Memory of all tensors that an object holds, in its attributes and in theirs; shared memory counts once.

    >>> maps = torch.zeros(2, 64, 77)
    >>> held_bytes({"maps": maps, "first": maps[:1]}) == maps.numel() * 4
    True
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    todo = [thing]
    while todo:
        part = todo.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type):
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, list | tuple | set | frozenset):
            todo += part
        else:
            todo += getattr(part, "__dict__", {}).values()
    return sum(storages.values())


def _execution() -> str | None:
    """The graph execution that ComfyUI is at; None outside of one."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return None if context is None else str(context.prompt_id)


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
