"""What does semantic guidance cost? Measures a full-size SD1.5 with random weights, with plain and semantic guidance.

    python benchmarks/overhead_guidance.py

Prints a Markdown table: one step with a prompt and a negative prompt, with plain guidance, S-CFG's regions and GoCA's
regions, alternating. On a CPU it measures processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.random_models import sd15_step
from benchmarks.timing import device, medians, processor_clock
from goca_core.capture.guidance.patch import guide
from goca_core.guidance.semantic import REGION_RULES, Settings
from scripts.boot import boot

PLAIN = "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--repeat", type=int, default=5, help="steps of each kind, alternating; the median is reported")
    options = parser.parse_args()
    boot()
    clock = processor_clock()  # from here on one thread
    model, step = sd15_step(options.size)
    models = {PLAIN: model} | {rule: guide(model, Settings(rule)) for rule in REGION_RULES}
    plain = step(model)
    for name, guided in models.items():
        if torch.equal(step(guided), plain) != (name == PLAIN):
            wanted = "equal" if name == PLAIN else "differ from"
            sys.exit(f"The timing is not valid: a step with {name} guidance should {wanted} the plain step.")
    seconds = medians({name: partial(step, guided) for name, guided in models.items()}, options.repeat, clock)
    print(f"SD1.5 at full size, {options.size}x{options.size}, cfg 7.5, torch {torch.__version__}, {device()}\n")
    print(f"| guidance | one step (median of {options.repeat}) | ratio |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {found:.2f} s | {found / seconds[PLAIN]:.3f} |")


if __name__ == "__main__":
    main()
