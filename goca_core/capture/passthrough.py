"""Seeing attention that the host hides.

Most networks of the host hand the options of the model call on to every attention call, where an override may look.
Some do not (PixArt, Hunyuan-DiT, ERNIE-Image): what they call is a name in their own module, so a pass-through is put
behind that name. It calls what was there with the same arguments and returns the same result, always. Only when the
thread it runs in is recording does it show them to the recorder, afterwards.

It is installed once in a process, when a model of such a family is first recorded, and stays: taking it away again could
pull it from under another thread, or from under another node pack that has wrapped it in turn.
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

# What the attention calls of this thread are shown to: arguments, keyword arguments, result. Several may watch one call,
# each for itself.
Watcher = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("goca_watchers", default=())
OVERRIDE = "optimized_attention_override"
_NAMES = ("optimized_attention", "optimized_attention_masked")
_lock = threading.Lock()


class PassThrough:
    """Stands behind a module's name for the attention function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.function(*args, **kwargs)
        # A compiler that follows the call finds nothing here that it could stumble over.
        if not torch.compiler.is_compiling():
            watchers = _watchers.get()
            # An override among the options has seen the call already.
            if watchers and OVERRIDE not in (kwargs.get("transformer_options") or {}):
                for watcher in watchers:
                    watcher(args, kwargs, out)
        return out


def install(modules: Iterable[str]) -> None:
    """Put pass-throughs into these modules of the host, where there are none yet."""
    with _lock:
        for module in map(importlib.import_module, modules):
            for name in _NAMES:
                found = getattr(module, name, None)
                if found is not None and not isinstance(found, PassThrough):
                    setattr(module, name, PassThrough(found))


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show ``watcher`` the hidden attention calls of this thread while the body runs."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)
