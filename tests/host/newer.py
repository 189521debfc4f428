"""How a ComfyUI newer than the pinned ones dispatches attention, switched on over one of those.

`switch_on` changes what calls attention and what is called: call sites hand over boxes and the kernel that their
checkpoint asks for, and the function under the name decides in ComfyUI's order. The networks stay ComfyUI's own. It knows
nothing of the recorder, whose pass-through comes between the two as it does in the real thing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import comfy.ldm.modules.attention as central
import comfy.model_base  # and with it all networks
import comfy.model_prefetch
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = ("optimized_attention", "optimized_attention_masked")
CALLED = {name: f"newer_{name}" for name in NAMES}
OVERRIDE = "optimized_attention_override"


class Box:
    """A tensor with one owner: who takes it leaves the box empty."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def peek(self) -> Tensor:
        if self.tensor is None:
            raise RuntimeError("the box is empty")
        return self.tensor

    def take(self) -> Tensor:
        tensor, self.tensor = self.peek(), None
        return tensor


class Preferred(nn.Module):
    """The part of an attention module that names its kernel; None where the checkpoint asks for none."""

    def __init__(self, function: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.function = function


class Dispatch:
    """The dispatch that is switched on. ``taken``: which ways were taken, and how often."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.callers: set[type] = set()

    def dispatch(self, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function under the name `optimized_attention`, around a kernel."""

        @functools.wraps(kernel)
        def wrapper(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Tensor:
            preferred = kwargs.pop("preferred_attention", None)
            boxed = isinstance(q, Box)
            if boxed is not isinstance(k, Box) or boxed is not isinstance(v, Box):
                raise TypeError("all three in boxes, or none")
            if "_inside_attn_wrapper" not in kwargs:
                kwargs["_inside_attn_wrapper"] = True
                override = (kwargs.get("transformer_options") or {}).get(OVERRIDE)
                if override is not None:
                    self.taken["override"] += 1
                    if boxed and hasattr(override, "container_function"):
                        result: Tensor = override.container_function(q, k, v, *args, **kwargs)
                        return result
                    opened = (each.take() if boxed else each for each in (q, k, v))
                    return override(kernel, *opened, *args, **kwargs)
                if preferred is not None and preferred.function is not None:
                    self.taken["preferred"] += 1
                    return preferred.function(q, k, v, *args, **kwargs)
            if boxed:
                self.taken["boxed"] += 1
                return wrapper.container_function(q, k, v, *args, **kwargs)  # type: ignore[attr-defined,no-any-return]
            self.taken["plain"] += 1
            return kernel(q, k, v, *args, **kwargs)

        def emptied(q: Box, k: Box, v: Box, *args: Any, **kwargs: Any) -> Tensor:
            return kernel(q.take(), k.take(), v.take(), *args, **kwargs)

        wrapper.container_function = emptied  # type: ignore[attr-defined]
        return wrapper

    def give_kernel(self, model: Any, function: Callable[..., Tensor]) -> None:
        """Let every attention module of a network ask for a kernel, also those that are no sites (refiners)."""
        for module in list(model.model.diffusion_model.modules()):
            if type(module) in self.callers:
                module.comfy_attention = Preferred(function)

    def rough_kernel(self) -> Callable[..., Tensor]:
        """A kernel of low precision, as checkpoints ask for it: eight bits for queries and keys."""

        def attention_rough(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Tensor:
            q, k, v = (each.take() if isinstance(each, Box) else each for each in (q, k, v))
            kernel: Callable[..., Tensor] = _kernel()
            return kernel(_rounded(q), _rounded(k), v, *args, **kwargs)

        return self.dispatch(attention_rough)


def _rounded(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-6) / 7
    return (x / step).round() * step


def _kernel() -> Callable[..., Tensor]:
    """The bare kernel that this ComfyUI has chosen."""
    found: Any = central.optimized_attention
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    kernel: Callable[..., Tensor] = found
    return kernel


def switch_on(monkeypatch: pytest.MonkeyPatch) -> Dispatch:
    """Let all networks that are loaded call attention as in a newer ComfyUI."""
    newer = Dispatch()
    function = newer.dispatch(_kernel())
    for module in [module for key, module in sys.modules.items() if key.startswith("comfy.ldm.")]:
        if not any(name in vars(module) for name in NAMES) and module.__name__ != "comfy.ldm.lightricks.model":
            continue
        for name in NAMES:
            if name in vars(module):
                monkeypatch.setattr(module, name, function)
                monkeypatch.setattr(module, CALLED[name], _call_site(module, name), raising=False)
        for owner, method in _functions(module):
            if (code := _renamed(method.__code__)) is not method.__code__:
                monkeypatch.setattr(method, "__code__", code)
                if owner is not None:
                    newer.callers.add(owner)
    assert newer.callers
    return newer


def _call_site(module: ModuleType, name: str) -> Callable[..., Tensor]:
    """What stands in the networks in place of a call by ``name``."""

    def call(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        preferred = getattr(sys._getframe(1).f_locals.get("self"), "comfy_attention", None)
        if preferred is not None:
            kwargs["preferred_attention"] = preferred
        out: Tensor = vars(module)[name](*(Box(each) for each in (q, k, v)), *args, **kwargs)
        return out

    return call


def _functions(module: ModuleType) -> Iterator[tuple[type | None, FunctionType]]:
    """The functions of a module and the methods of its classes. Of the central module only the methods are call sites."""
    for value in list(vars(module).values()):
        if isinstance(value, FunctionType) and value.__module__ == module.__name__ and module is not central:
            yield None, value
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from ((value, method) for method in vars(value).values() if isinstance(method, FunctionType))


def _renamed(code: CodeType) -> CodeType:
    """A function's code with other names for what it calls."""
    if not set(NAMES) & set(code.co_names):
        return code
    return code.replace(co_names=tuple(CALLED.get(name, name) for name in code.co_names))


def fuse_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Lumina's and Z-Image's blocks compute norm, modulation and projection in one, as for int8 weights: the module of
    the projection is not called."""
    import comfy.ldm.lumina.model as lumina

    if hasattr(lumina, "_fused_rms_modulated_linear"):  # a newer ComfyUI itself

        def fused(x: Tensor, linear: Any, norm: Any, scale: Tensor) -> Tensor:
            return torch.nn.functional.linear(norm(x) * scale, linear.weight)

        monkeypatch.setattr(lumina, "_fused_rms_modulated_linear", fused)
        return
    fuse(monkeypatch, lumina.JointAttention, "qkv")


def fuse(monkeypatch: pytest.MonkeyPatch, attention: Any, name: str) -> None:
    """Let an attention module, or all of a class, compute a projection without calling its module."""
    forward = attention.forward

    def without_module(*args: Any, **kwargs: Any) -> Any:
        owner = args[0] if isinstance(attention, type) else attention
        linear = getattr(owner, name)
        setattr(owner, name, _Bare(linear))
        try:
            return forward(*args, **kwargs)
        finally:
            setattr(owner, name, linear)

    monkeypatch.setattr(attention, "forward", without_module)


class _Bare(nn.Module):
    """In the place of a projection: the same result."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


# -- the graph of allocations ---------------------------------------------------------------------------------------------


class AllocationGraph(TorchDispatchMode):
    """A stand-in for ComfyUI's graph of allocations, with a frame for each block of a network.

    What is allocated in a frame and alive at its end, but is no result of the block, is one of the ``rogues``. A pause is a
    flag and no counter, as in the real thing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rogues = self.frames = self.pauses = 0
        self._paused = False
        self._frames: list[dict[int, StorageWeakRef]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._frames and not self._paused:
            old = {_memory(tensor) for tensor in _tensors((args, kwargs))}
            for tensor in _tensors(out):
                if _memory(tensor) not in old:
                    self._frames[-1][_memory(tensor)] = StorageWeakRef(tensor.untyped_storage())
        return out

    @contextlib.contextmanager
    def pause(self, sync: bool = False) -> Iterator[None]:
        assert not self._paused, "a pause in a pause would end it too early"
        self.pauses += 1
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextlib.contextmanager
    def over(self, blocks: Iterable[nn.Module]) -> Iterator[AllocationGraph]:
        """Record the allocations of these blocks while the body runs."""

        def begin(_module: nn.Module, _args: Any) -> None:
            self._frames.append({})

        def end(_module: nn.Module, _args: Any, out: Any) -> None:
            results = {_memory(tensor) for tensor in _tensors(out)}
            frame = self._frames.pop()
            self.frames += 1
            self.rogues += sum(not storage.expired() for memory, storage in frame.items() if memory not in results)

        handles = [handle for block in blocks for handle in _hooks(block, begin, end)]
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()


def _hooks(block: nn.Module, begin: Any, end: Any) -> tuple[Any, Any]:
    return block.register_forward_pre_hook(begin), block.register_forward_hook(end)


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# -- captured graphs ------------------------------------------------------------------------------------------------------


class CapturedGraphs:
    """A stand-in for ComfyUI's captured CUDA graphs: the first call of a block warms it up, the second is captured, and later
    ones run without its Python code, so that nobody sees them. ``replayed``: how many did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, blocks: Iterable[nn.Module], droppable: bool) -> None:
        self.warmed: set[nn.Module] = set()
        self.replayed = 0
        for block in blocks:
            monkeypatch.setattr(block, "forward", functools.partial(self._run, block, block.forward))
        for name in ("_drop_graph", "GRAPH_WARMED_MODULES"):
            monkeypatch.delattr(comfy.model_prefetch, name, raising=False)
        if droppable:
            monkeypatch.setattr(comfy.model_prefetch, "_drop_graph", _drop, raising=False)
            monkeypatch.setattr(comfy.model_prefetch, "GRAPH_WARMED_MODULES", self.warmed, raising=False)

    def _run(self, block: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(block, "_comfy_graph", None) is not None:
            self.replayed += 1
            return contextvars.Context().run(forward, *args, **kwargs)
        if block in self.warmed:
            block._comfy_graph = object()
        self.warmed.add(block)
        return forward(*args, **kwargs)


def _drop(block: Any) -> None:
    del block._comfy_graph
