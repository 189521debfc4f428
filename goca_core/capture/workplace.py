"""Where ComfyUI wants work to be done that is neither sampling nor encoding: its device, while there is room for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..batches import Workplace

R = TypeVar("R")
_log = logging.getLogger("goca")
_CPU = torch.device("cpu")


def on_device(work: Callable[[Workplace], R]) -> R:
    """Do work on ComfyUI's device, or on the CPU if the device cannot do it or has no room for it.

    ``work`` gets the place, with half of the free memory as its room: models stay where they are, so that the next sampler
    does not load them again. It may be called twice.
    """
    import comfy.model_management

    results = comfy.model_management.intermediate_device()
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        room = comfy.model_management.get_free_memory(device) // 2
        try:
            return work(Workplace(device, int(room), results))
        except (comfy.model_management.OOM_EXCEPTION, NotImplementedError) as error:
            # An operator that a kind of device does not have is not an error of the work.
            _log.warning("GoCA: masks are made on the CPU, because %s cannot make them: %s", device, error)
        comfy.model_management.soft_empty_cache()
    return work(Workplace(_CPU, results=results))
