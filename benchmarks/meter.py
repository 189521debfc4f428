"""Count what a computation costs without running it: kernels, floating-point operations, bytes, and memory.

    with Meter() as meter:
        network(x)            # on torch's meta device, where a full-size model costs nothing
    meter.kernels, meter.flops, meter.moved, meter.peak

On the meta device, everything that would wait for a GPU raises an error (`item`, `cpu`, `bool`, `nonzero`). `Meter`
counts the copies from the CPU to the device as well, because these make the CPU wait, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators that start no kernel although they return new tensors.
_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "_unsafe_view",
    "_reshape_alias", "alias", "set_",
}  # fmt: skip


# Operators with a formula of their own, or with a single kernel on a GPU.
_WHOLE = {
    torch.ops.aten.rms_norm.default,
    torch.ops.aten.upsample_bilinear2d.vec,
    torch.ops.aten.upsample_bilinear2d.default,
}


class Meter(TorchDispatchMode):
    """Counts the operators that run while it is active.

    ``kernels``: operators that start at least one kernel. ``flops``: of matrix products, convolutions and attention, where a
    multiplication and an addition are two. ``moved``: bytes that kernels read and write. ``peak``: the largest number of bytes
    of new tensors that were alive at once. ``uploads``: copies of CPU tensors to the device. ``names``: kernels by operator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.flops = self.moved = self.peak = self.uploads = 0
        self.names: dict[str, int] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _WHOLE:
            # In inference mode, operators such as `linear` arrive before they are taken apart.
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(tensor.device.type != "cpu" for tensor in (*given, *made)):
            self._count(func, given, made, out, args, kwargs or {})
        return out

    def _count(self, func: Any, given: list[Tensor], made: list[Tensor], out: Any, args: Any, kwargs: Any) -> None:
        packet = func.overloadpacket
        self._remember(made, given)
        if func.is_view or packet.__name__ in _NO_KERNEL:
            return
        self.kernels += 1
        self.names[packet.__name__] = self.names.get(packet.__name__, 0) + 1
        # A number as a tensor on the CPU is passed to the kernel by value.
        self.uploads += any(tensor.device.type == "cpu" and tensor.ndim for tensor in given)
        self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)

    def _remember(self, made: list[Tensor], given: list[Tensor]) -> None:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        old = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            storage = tensor.untyped_storage()
            if tensor.device.type != "cpu" and storage._cdata not in old:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
