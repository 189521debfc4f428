"""Keep clear of what newer ComfyUI versions replay: graphs of allocations, and captured CUDA graphs.

While some networks run, ComfyUI records all allocations of their thread, one frame for each block, and replays them in
later evaluations. What a recorder allocates and keeps would break that plan. Captured CUDA graphs run a block without its
Python code, so nothing could be recorded of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from torch import nn


def _prefetch() -> Any:
    """ComfyUI's module of both; older versions have neither, or lack the functions."""
    try:
        import comfy.model_prefetch
    except ImportError:
        return None
    return comfy.model_prefetch


def apart_from_allocations() -> AbstractContextManager[Any]:
    """What is allocated and freed while the body runs is no part of ComfyUI's graph of allocations.

    Never enter it twice, nor where ComfyUI has paused its graph itself: to leave the inner one ends the pause.
    """
    pause = getattr(_prefetch(), "pause_malloc_graph", None)
    return nullcontext() if pause is None else pause()


def drop_captured(network: nn.Module) -> None:
    """Let the next call of a network run its Python code, and let it not be captured."""
    prefetch = _prefetch()
    drop, warmed = (getattr(prefetch, name, None) for name in ("_drop_graph", "GRAPH_WARMED_MODULES"))
    if drop is None:
        return
    # These names are not public. Where they have changed, the recording tells which evaluations it could not see.
    with suppress(Exception):
        for module in network.modules():
            if getattr(module, "_comfy_graph", None) is not None:
                drop(module)
            if warmed is not None:
                warmed.discard(module)
