"""What do masked LoRAs cost on a CPU? Measures a full-size SD1.5 with random weights, beside ComfyUI's own bypass LoRA.

    python benchmarks/overhead_lora.py

Two LoRAs of rank 16 change all linear layers and convolutions. Each is inside the mask of its half of the image, or ComfyUI's
bypass applies both everywhere. Prints a Markdown table of one step with a prompt and a negative prompt, alternating. On a CPU
it measures processor time, which other work on the machine hardly changes. `lora_cost.py` counts the same for a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.random_models import random_lora, sd15_step
from benchmarks.timing import device, medians, processor_clock
from goca_core.capture.lora.patch import lora_by_mask
from scripts.boot import boot

RANK, STRENGTH = 16, 0.8
PLAIN, BYPASS, MASKED = "no LoRA", "two LoRAs, ComfyUI's bypass", "two LoRAs, **LoRA by Mask**"


def with_loras(model: Any, folder: Path, side: int) -> dict[str, Any]:
    """The model with both LoRAs, by the name of the way."""
    import comfy.sd
    from safetensors.torch import save_file

    bypass = masked = model
    left = torch.zeros(1, side, side)
    left[..., : side // 2] = 1
    for number, mask in enumerate((left, 1 - left)):
        tensors, file = random_lora(model, RANK, 0.1, seed=number), folder / f"{number}.safetensors"
        save_file(tensors, file)
        bypass = comfy.sd.load_bypass_lora_for_models(bypass, None, tensors, STRENGTH, 0.0)[0]
        masked, _ = lora_by_mask(masked, file, STRENGTH, mask)
    return {BYPASS: bypass, MASKED: masked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--repeat", type=int, default=3, help="steps of each kind, alternating; the median is reported")
    options = parser.parse_args()
    boot()
    clock = processor_clock()  # from here on one thread
    model, step = sd15_step(options.size)
    with tempfile.TemporaryDirectory() as folder:
        models = {PLAIN: model} | with_loras(model, Path(folder), options.size)
        results = [step(each) for each in models.values()]
        if any(torch.equal(one, other) for one, other in pairwise(results)):
            sys.exit("The timing is not valid: the three ways should give three images, and two of them are equal.")
        seconds = medians({name: partial(step, each) for name, each in models.items()}, options.repeat, clock)
    print(f"SD1.5 at full size, {options.size}x{options.size}, cfg 7.5, torch {torch.__version__}, {device()}\n")
    print(f"| | one step (median of {options.repeat}) | of no LoRA | of the bypass |\n|---|---|---|---|")
    for name, found in seconds.items():
        ratio = "" if name == PLAIN else f"{found / seconds[BYPASS]:.3f}"
        print(f"| {name} | {found:.2f} s | {found / seconds[PLAIN]:.3f} | {ratio} |")


if __name__ == "__main__":
    main()
