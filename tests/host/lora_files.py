"""LoRA files of random weights for tiny models, and runs with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import safetensors.torch
from torch import Tensor

from benchmarks import random_models

RANK = 3


def random_lora(
    model: Any, chosen: Callable[[str], bool] = lambda _name: True, seed: int = 3, size: float = 0.4
) -> dict[str, Tensor]:
    """The tensors of a LoRA for all these layers of a MODEL."""
    return random_models.random_lora(model, RANK, size, chosen, seed)


def written(folder: Path, tensors: dict[str, Tensor], name: str = "random.safetensors", **metadata: str) -> Path:
    path = folder / name
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata or None)
    return path


def bypassed(model: Any, path: Path, strength: float) -> Any:
    """A copy of a MODEL with ComfyUI's own bypass LoRA."""
    tensors = safetensors.torch.load_file(path)
    return comfy.sd.load_bypass_lora_for_models(model, None, tensors, strength, 0.0)[0]


def usual(model: Any, path: Path, strength: float) -> Any:
    """A copy of a MODEL with a LoRA loaded the usual way."""
    tensors = safetensors.torch.load_file(path)
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]
