"""Record attention in networks that do not pass transformer_options to their attention calls.

Most of ComfyUI's networks pass the options of the model call to every attention call, so an override can record it.
PixArt, Hunyuan-DiT and ERNIE-Image do not: they call a function by its name in their own module. A pass-through replaces
the function under that name. It always calls the original with the same arguments and returns the same result. If its
thread is recording, it then also gives the arguments and the result to the recorder.

It is installed once per process, when a model of such a family is first recorded, and is never removed: another thread
may be using it, or another node pack may have wrapped it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from .reduce.fused import watch_totals

# Called after each attention call of this thread with its arguments, keyword arguments and result, and with what its fused
# kernel showed. There may be several watchers.
Watcher = Callable[[tuple[Any, ...], dict[str, Any], Any, watch_totals], None]
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("goca_watchers", default=())
OVERRIDE = "optimized_attention_override"
_NAMES = ("optimized_attention", "optimized_attention_masked")
_lock = threading.Lock()


class PassThrough:
    """Replaces the attention function of a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler that traces this call must not meet the code below. If the options hold an override, it records the call.
        if (
            torch.compiler.is_compiling()
            or not (watchers := _watchers.get())
            or OVERRIDE in (kwargs.get("transformer_options") or {})
        ):
            return self.function(*args, **kwargs)
        with watch_totals() as seen:
            out = self.function(*args, **kwargs)
        for watcher in watchers:
            watcher(args, kwargs, out, seen)
        return out


def install(modules: Iterable[str]) -> None:
    """Install pass-throughs in these ComfyUI modules, unless they are installed already."""
    with _lock:
        for module in map(importlib.import_module, modules):
            for name in _NAMES:
                found = getattr(module, name, None)
                if found is not None and not isinstance(found, PassThrough):
                    setattr(module, name, PassThrough(found))


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` after each passed-through attention call of this thread while the body runs."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)
