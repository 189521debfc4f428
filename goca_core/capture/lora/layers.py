"""The layers that a LoRA changes: what it adds to each of them, computed by ComfyUI's own bypass adapters.

ComfyUI's bypass replaces the forward function of a module. Here forward hooks do the same for one model call at a time, so
that nothing stays on the modules, and several LoRAs may change one layer.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# (name of the layer, its output, whether it is a convolution) -> what multiplies the LoRA's part; None for nothing.
WeightOf = Callable[[str, Tensor, bool], Tensor | None]


@dataclass
class Difference:
    """A whole weight, or a bias, that is added to that of a layer: an adapter like ComfyUI's, for what it patches itself."""

    weights: Sequence[Tensor | None]
    multiplier: float = 1.0
    is_conv: bool = False
    conv_dim: int = 0
    kw_dict: dict[str, Any] = field(default_factory=dict)

    def h(self, x: Tensor, out: Tensor) -> Tensor:
        weight, bias = self.weights
        if weight is None:
            assert bias is not None
            shape = (-1, *[1] * (out.ndim - 2)) if self.is_conv else (-1,)
            return (bias.to(out.dtype) * self.multiplier).view(shape).expand_as(out)
        operation = (F.linear, F.conv1d, F.conv2d, F.conv3d)[self.conv_dim if self.is_conv else 0]
        return operation(x, weight.to(x.dtype), **self.kw_dict) * self.multiplier


@dataclass(frozen=True)
class LoRALayer:
    """What a LoRA does to one layer.

    ``name``: the module, within ComfyUI's model. ``adapter``: one of ComfyUI's, or a `Difference`. ``part``: the axis of the
    weight (0: output, 1: input), first row and number of rows, if it changes only these.
    """

    name: str
    adapter: Any
    part: tuple[int, int, int] | None = None


class BoundLayer:
    """A layer of a LoRA on one module, with its weights where the module computes."""

    def __init__(self, layer: LoRALayer, module: nn.Module, strength: float, device: torch.device) -> None:
        from comfy.weight_adapter.bypass import BypassForwardHook

        self.name, self.module, self.part = layer.name, module, layer.part
        # The same file may be used several times; ComfyUI keeps the strength and the kind of module in the adapter.
        self.adapter = copy.copy(layer.adapter)
        # ComfyUI's class reads what the adapter must know of the module. It is never injected.
        BypassForwardHook(module, self.adapter, multiplier=strength)
        self.adapter.weights = _moved(self.adapter.weights, device, module)
        self.conv = bool(self.adapter.is_conv)
        self._bypass, self.turns = _own(self.adapter, "bypass_forward"), _own(self.adapter, "g")

    def apply(self, weight_of: WeightOf, owner: int, _module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        """A forward hook: the output with the LoRA's part, or None to leave it."""
        if threading.get_ident() != owner or not isinstance(out, Tensor):
            return None
        weight = weight_of(self.name, out, self.conv)
        if weight is None:
            return None
        (x, *more), named = (args, kwargs) if args else ((kwargs["input"],), {})
        if self.part is not None:
            return self._apply_to_part(x, out, weight)
        if not self._bypass and not self.turns:
            return torch.addcmul(out, self.adapter.h(x, out), weight)
        if self._bypass:
            changed = self.adapter.bypass_forward(self.module.forward, x, *more, **named)
        else:
            changed = self.adapter.g(out + self.adapter.h(x, out))
        # Where the mask is one, exactly what ComfyUI's bypass gives.
        return torch.where(weight == 1, changed, torch.addcmul(out, changed - out, weight))

    def _apply_to_part(self, x: Tensor, out: Tensor, weight: Tensor) -> Tensor:
        assert self.part is not None
        axis, start, size = self.part
        channels = 1 if self.conv else -1
        if axis == 1:
            return torch.addcmul(out, self.adapter.h(x.narrow(channels, start, size), out), weight)
        changed = out.clone()
        own = changed.narrow(channels, start, size)
        own.addcmul_(self.adapter.h(x, own), weight)
        return changed


@contextlib.contextmanager
def added(bound: Sequence[BoundLayer], weight_of: WeightOf) -> Iterator[None]:
    """Let a LoRA act while the body runs, in this thread."""
    handles = []
    try:
        for layer in bound:
            hook = partial(layer.apply, weight_of, threading.get_ident())
            # First, so that whoever records the output of a layer sees what the next layer gets.
            handles.append(layer.module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def bind(layers: Sequence[LoRALayer], model: Any, strength: float, device: torch.device) -> list[BoundLayer]:
    """The layers of a LoRA on the modules of a running ComfyUI model."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    # A compiler wraps the network in a module of its own.
    compiled = "diffusion_model._orig_mod." if "diffusion_model._orig_mod" in modules else "diffusion_model."
    names = (layer.name.replace("diffusion_model.", compiled, 1) for layer in layers)
    return [BoundLayer(layer, modules[name], strength, device) for layer, name in zip(layers, names, strict=True)]


def _moved(weights: Any, device: torch.device, module: nn.Module) -> Any:
    """Weights of an adapter on a device, in the precision that ComfyUI's bypass gives them."""
    dtype = getattr(getattr(module, "weight", None), "dtype", None)
    to = partial(torch.Tensor.to, device=device, **({"dtype": dtype} if dtype in _FLOATS else {}))
    if isinstance(weights, Tensor):
        return to(weights)
    return type(weights)(to(each) if isinstance(each, Tensor) else each for each in weights)


def _own(adapter: Any, method: str) -> bool:
    """Whether an adapter does not leave a method to ComfyUI's base class."""
    from comfy.weight_adapter import WeightAdapterBase

    found = getattr(type(adapter), method, None)
    return found is not None and found is not getattr(WeightAdapterBase, method)
