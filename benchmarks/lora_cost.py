"""What do masked LoRAs cost on a GPU? Counted on torch's meta device, beside ComfyUI's own bypass LoRA.

    python benchmarks/lora_cost.py              two LoRAs on every layer of SD 1.5
    python benchmarks/lora_cost.py sdxl flux    of these models

Two LoRAs of rank 16 change all linear layers and convolutions. Each is inside the mask of its half of the image, or ComfyUI's
bypass applies both everywhere. Kernels, operations and bytes moved are ratios to the model without LoRAs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.full_size import META, SIZES, build, flash_attention
from benchmarks.meter import Meter
from goca_core.capture.hooks import ModelCall
from goca_core.capture.lora.file import LoRA
from goca_core.capture.lora.layers import LoRALayer
from goca_core.capture.lora.places import Placement
from goca_core.capture.lora.run import LoRACalls, MaskedLoRA
from goca_core.capture.passthrough import OVERRIDE
from scripts.boot import boot

RANK, COUNT = 16, 2
WORDS = (2, 3, 7)  # tokens of a phrase


@dataclass(frozen=True)
class LoRACost:
    """A forward pass without LoRAs, with ComfyUI's bypass, and with masks."""

    plain: Meter
    bypass: Meter
    masked: Meter

    def beside(self, what: str) -> float:
        """What masks cost, as a multiple of ComfyUI's bypass."""
        return float(getattr(self.masked, what) / getattr(self.bypass, what))


def adapters(model: Any) -> list[tuple[str, Any]]:
    """A LoRA for each layer; its weights have no values."""
    from comfy.weight_adapter.lora import LoRAAdapter

    found = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.startswith("diffusion_model."):
            out, inputs, *kernel = module.weight.shape
            down = torch.empty(RANK, inputs, *kernel, dtype=module.weight.dtype, device=META)
            up = torch.empty(out, RANK, *[1] * len(kernel), dtype=module.weight.dtype, device=META)
            found.append((name, LoRAAdapter(set(), (up, down, float(RANK), None, None, None))))
    return found


@contextmanager
def bypassed(model: Any) -> Iterator[None]:
    """ComfyUI's own bypass of both LoRAs."""
    import comfy.model_management
    from comfy.weight_adapter import BypassInjectionManager

    kept, comfy.model_management.get_torch_device = comfy.model_management.get_torch_device, lambda: META
    injections = []
    try:
        for _ in range(COUNT):
            manager = BypassInjectionManager()
            for name, adapter in adapters(model):
                manager.add_adapter(f"{name}.weight", adapter)
            injections += manager.create_injections(model)
        for injection in injections:
            injection.inject(None)
        yield
    finally:
        for injection in reversed(injections):
            injection.eject(None)
        comfy.model_management.get_torch_device = kept


def measure(name: str) -> LoRACost:
    """The cost for a model. Raises RuntimeError if something would have waited for the GPU."""
    from goca_core.capture.families import plan_of

    model, call = build(name)
    options = {OVERRIDE: flash_attention}

    def counted() -> Meter:
        with torch.inference_mode(), Meter() as meter:
            call.run(model.diffusion_model, dict(options))
        return meter

    plain = counted()
    with bypassed(model):
        counted()
        bypass = counted()
    rows, size = len(call.x), call.x.shape
    layers = tuple(LoRALayer(each, adapter) for each, adapter in adapters(model))
    half = torch.zeros(1, size[2] if len(size) == 5 else 1, *size[-2:])
    half[..., : size[-1] // 2] = 1
    uuids = list(range(rows))
    loras = [MaskedLoRA(LoRA("", layers), 1.0, Placement(mask, {0: WORDS})) for mask in (half, 1 - half)]
    calls = LoRACalls(loras)
    model_call = ModelCall(model, call.x, {**options, "uuids": uuids}, call.given)
    for _ in range(2):  # the masks of the layers are made in the first
        with calls.around(model_call, plan_of(model), call.context):
            masked = counted()
    return LoRACost(plain, bypass, masked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"models: {', '.join(SIZES)} (default: sd15)")
    options = parser.parse_args()
    boot()
    print("| model | LoRAs | kernels | operations | bytes moved |\n|---|---|---|---|---|")
    for name in options.models or ["sd15"]:
        cost = measure(name)
        for label, meter in (("ComfyUI's bypass", cost.bypass), ("inside masks", cost.masked)):
            row = (getattr(meter, what) / getattr(cost.plain, what) for what in ("kernels", "flops", "moved"))
            print(f"| {SIZES[name].label} | {label} | {' | '.join(f'{each:.3f}' for each in row)} |", flush=True)


if __name__ == "__main__":
    main()
