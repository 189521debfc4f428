"""Look at attention calls without taking part in them.

ComfyUI's networks call attention by a name in their own module. A pass-through replaces the function under that name. It
always calls the original with the same arguments and returns the same result. If its thread is recording, it also shows
the arguments and the result to the recorder. So ComfyUI chooses the kernel as without it: the one that a checkpoint asks
for, the override of another node, or its own. An override that only looked would change that choice.

Pass-throughs are installed when a model is first recorded and are never removed: another thread may be using them, or
another node pack may have wrapped them. Nothing is shown unless a recorder watches.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .reduce.fused import watch_totals

OVERRIDE = "optimized_attention_override"
_CENTRAL = "comfy.ldm.modules.attention"
_NETWORKS = "comfy.ldm."
_NAMES = ("optimized_attention", "optimized_attention_masked")
_REPLACEMENTS = ("attn1", "attn2")
_lock = threading.Lock()
# The names that have pass-throughs, and how many modules were loaded when they were looked for.
_calling: list[tuple[ModuleType, str]] = []
_counted = -1


@dataclass(frozen=True)
class Watcher:
    """``show`` is called after each attention call of this thread with its arguments, keyword arguments and result, and
    with what its fused kernel showed. ``totals``: whether that is needed of the call that is about to be made.

    ``show`` gets tensors, also where ComfyUI's network passes boxes, which are empty after the call.
    """

    show: Callable[[tuple[Any, ...], dict[str, Any], Any, watch_totals], None]
    totals: Callable[[], bool] = lambda: True


# Saw nothing, for calls that nobody watches: a new one takes longer than a small kernel.
_UNWATCHED = watch_totals()
# Arguments that are never boxes.
_PLAIN = (Tensor, int, float, str, dict)
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("goca_watchers", default=())


class PassThrough:
    """Replaces the attention function of a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # ComfyUI reads attributes of its attention functions.
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler that traces this call must not meet the code below.
        if torch.compiler.is_compiling() or not _watchers.get():
            return self.function(*args, **kwargs)
        return _shown(self.function, args, kwargs)


def _shown(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an attention function and show the call to all watchers; calls within it are part of it."""
    watchers = _watchers.get()
    opened, named = tuple(map(_opened, args)), {name: _opened(value) for name, value in kwargs.items()}
    token = _watchers.set(())
    try:
        # Watching makes every operator of the call slower, so it is only done where it saves a second attention call.
        watched = any(watcher.totals() for watcher in watchers)
        seen = watch_totals() if watched else _UNWATCHED
        with seen if watched else nullcontext():
            out = function(*args, **kwargs)
    finally:
        _watchers.reset(token)
    for watcher in watchers:
        watcher.show(opened, named, out, seen)
    return out


def _opened(value: Any) -> Any:
    """The tensor in a box from which an attention kernel takes it; other arguments as they are."""
    if value is None or isinstance(value, _PLAIN):
        return value
    peek = getattr(value, "peek", None)
    return peek() if callable(peek) else value


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show ``watcher`` each attention call of this thread while the body runs."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


# -- modules that call attention ------------------------------------------------------------------------------------------


def install() -> None:
    """Install pass-throughs in all loaded modules that call ComfyUI's attention, unless they are installed already.

    Those are the modules of its networks, whatever function they call by now, and modules of other packs that imported
    the function itself.
    """
    global _counted
    central = sys.modules.get(_CENTRAL)
    if central is None:
        return
    with _lock:
        own = {name: _innermost(vars(central).get(name)) for name in _NAMES}
        modules = {key: module for key, module in list(sys.modules.items()) if isinstance(module, ModuleType)}
        for key, module in modules.items():
            _install(module, own, key == _CENTRAL or key.startswith(_NETWORKS))
        _calling[:] = [(module, name) for module in modules.values() for name in _NAMES if _is_shown(module, name)]
        _counted = len(sys.modules)


def renew() -> None:
    """The same for a run that goes on: looks only at names that had them, unless modules were loaded since."""
    if len(sys.modules) != _counted or not all(_is_shown(*place) for place in _calling):
        install()


def _is_shown(module: ModuleType, name: str) -> bool:
    return isinstance(vars(module).get(name), PassThrough)


def _install(module: ModuleType, own: Mapping[str, Any], network: bool) -> None:
    values = vars(module)
    for name in _NAMES:
        found = values.get(name)
        if callable(found) and not isinstance(found, PassThrough) and (network or found is own[name]):
            setattr(module, name, PassThrough(found))


def _innermost(function: Any) -> Any:
    return function.function if isinstance(function, PassThrough) else function


# -- attention that another node replaces ---------------------------------------------------------------------------------


def replaces_attention(transformer_options: Mapping[str, Any]) -> bool:
    """Whether another node computes the attention of some blocks itself."""
    return any((transformer_options.get("patches_replace") or {}).get(name) for name in _REPLACEMENTS)


def show_replacements(transformer_options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with replacements of attention that show their own calls.

    They may call an attention function by a name of their own, where only an override sees it. It is in the options of
    those calls alone, because it would change the kernel of others.
    """
    replaced = dict(transformer_options["patches_replace"])
    for name in _REPLACEMENTS:
        if replaced.get(name):
            replaced[name] = {key: _showing(function) for key, function in replaced[name].items()}
    return {**transformer_options, "patches_replace": replaced}


def _showing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def call(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        previous = extra_options.get(OVERRIDE)
        return function(q, k, v, {**extra_options, OVERRIDE: _override(previous)}, *args, **kwargs)

    return call


def _override(previous: Callable[..., Any] | None) -> Callable[..., Any]:
    def override(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return _shown(func if previous is None else functools.partial(previous, func), args, kwargs)

    return override
