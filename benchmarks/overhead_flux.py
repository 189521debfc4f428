"""What does recording cost with joint attention? Measures Flux.1 at full width, with fewer blocks and random weights.

    python benchmarks/overhead_flux.py

Prints a Markdown table: a recorded forward pass compared with a plain one, with layers compared on 64x64 and on 32x32 tokens,
and the peak memory compared with an implementation that keeps the joint attention of every layer. The real model has 19
double and 38 single blocks of the same size. Each memory value is measured in its own process. On a CPU it measures
processor time on one thread, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.random_models import flux, keeping_all, sample, t5_prompt
from benchmarks.timing import device, measure_peaks, medians, peak_memory, processor_clock
from goca_core.capture.options import GRIDS, RecordOptions
from goca_core.capture.recorder import record
from goca_core.capture.window import Window
from scripts.boot import boot


def recorded(model: Any, method: str, limit: str = "auto") -> Any:
    return record(model, Window(), RecordOptions(method=method, grid_limit=GRIDS[limit]))[0]


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "recorded": partial(recorded, method="auto"),
    "recorded, paper": partial(recorded, method="paper"),
    "recorded, paper, 64x64": partial(recorded, method="paper", limit="64x64"),
    "keeping all": partial(keeping_all, by_head=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels")
    parser.add_argument("--double", type=int, default=1, help="double blocks")
    parser.add_argument("--single", type=int, default=2, help="single blocks")
    parser.add_argument(
        "--repeat", type=int, default=3, help="forward passes of each kind, alternating; the median is reported"
    )
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (f"--{name}={getattr(options, name)}" for name in ("size", "double", "single"))
    peaks = {} if options.peak else measure_peaks(__file__, VARIANTS, *shape)
    boot("--use-pytorch-cross-attention")
    clock = processor_clock()
    model, positive = flux(options.double, options.single), t5_prompt()

    def forward(variant: str) -> None:
        sample(VARIANTS[variant](model), positive, (0.407, 0.0), options.size // 8)

    if options.peak:
        forward(options.peak)
        print(json.dumps(peak_memory()))
        return
    timed = {name: partial(forward, name) for name in VARIANTS if name != "keeping all"}
    seconds = medians(timed, options.repeat, clock)
    blocks = f"{options.double} double and {options.single} single blocks"
    print(f"Flux.1 with {blocks}, {options.size}x{options.size}, {device()}\n")
    print("| | one forward pass | ratio | peak memory | extra memory |\n|---|---|---|---|---|")
    for name, peak in peaks.items():
        found = seconds.get(name)
        cost = ("", "") if found is None else (f"{found:.1f} s", f"{found / seconds['plain']:.2f}")
        row = (name, *cost, f"{peak} MB", f"+{peak - peaks['plain']} MB")
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
