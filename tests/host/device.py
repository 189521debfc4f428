"""The device that the models of the tests compute on, how exactly it does, and whether it repeats itself.

Latents, masks and recordings are on the CPU, wherever the model is. What a test takes out of a running model, or puts into
one, is on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scripts.comfy_server import device

CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if device() == "cuda" else CPU
ACCELERATED = DEVICE != CPU

# -- how exact a recording is, as a share of the largest number: by the precision in which it is computed and stored --------

EXACT = 1e-4
"""Computed and stored in float32."""
STORED = 1e-3 if ACCELERATED else EXACT
"""Scores of layers. On an accelerator, self-attention that waits for the reference is stored in float16, which is off by up
to 2^-11 of each number: all in one direction, if they are nearly equal."""
HALF = 3e-2
"""Of a model that computes in half precision."""


def half_precision(cpu: float) -> float:
    """The tolerance for a model of half precision: the given one on a CPU, where the reduction is done in float32. On an
    accelerator it is done in half precision as well."""
    return max(cpu, HALF) if ACCELERATED else cpu


# -- moving ----------------------------------------------------------------------------------------------------------------


def to_device(value: Any) -> Any:
    """What a model takes in: tensors, also in lists, tuples and dicts, on its device."""
    return _moved(value, lambda tensor: tensor.to(DEVICE))


def on_cpu(value: Any) -> Any:
    """Copies on the CPU of what was taken out of a running model, which may go on to write into it."""
    return _moved(value, lambda tensor: tensor.detach().to(CPU, copy=True))


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if type(value) is dict:
        return {key: _moved(part, move) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(part, move) for part in value)
    return value


# -- repeating -------------------------------------------------------------------------------------------------------------

RUNS = 3 if ACCELERATED else 2
"""How often `repeated` runs."""


def repeated(run: Callable[[], Any]) -> Any:
    """What ComfyUI gives without this pack, which must be the same twice: else a comparison with it shows nothing.

    On an accelerator it runs once more before, because libraries choose their algorithms in the first call of a shape.
    """
    first, second = [run() for _ in range(RUNS)][-2:]
    # Some latents are not numbers, on purpose.
    alike = torch.equal(first, second) or torch.equal(first.nan_to_num(), second.nan_to_num())
    far = float((first.double() - second.double()).abs().max()) if first.shape == second.shape else torch.inf
    assert alike, (
        f"ComfyUI itself does not repeat on this machine: two runs without the pack differ by up to {far:.2g}, so what "
        "the pack changes cannot be told"
    )
    return second


def random_states() -> list[Tensor]:
    """Of the generators that all code shares."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(DEVICE)] if ACCELERATED else [])]
