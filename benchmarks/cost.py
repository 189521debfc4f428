"""What does recording cost on a GPU? Counted on torch's meta device, where full-size models need neither a GPU nor weights.

    python benchmarks/cost.py                   the table of docs/performance.md, in about a minute
    python benchmarks/cost.py sdxl flux         only these models
    python benchmarks/cost.py --grid 64x64      with layers compared on a finer grid
    python benchmarks/cost.py --propagation-layers "last third"
    python benchmarks/cost.py flux --kernels    also list the kernels that recording adds

Compares a recorded forward pass with a plain one: kernels started, floating-point operations, bytes moved, and the peak
memory of activations. All but memory are ratios. Attention is counted as the fused kernel that a GPU runs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.full_size import SIZES, Forward, build, flash_attention
from benchmarks.meter import Meter
from goca_core.attention.record import Tokens
from goca_core.capture.families import find_family
from goca_core.capture.forward import ForwardRecorder
from goca_core.capture.options import GRIDS, RECORD_METHODS, RecordOptions
from goca_core.capture.passthrough import OVERRIDE
from goca_core.capture.reduce import fused
from scripts.boot import boot

WORDS = 14  # tokens that are kept of a prompt of ordinary length


@dataclass(frozen=True)
class Cost:
    """A plain forward pass and a recorded one."""

    plain: Meter
    recorded: Meter

    @property
    def kernels(self) -> float:
        return self.recorded.kernels / self.plain.kernels

    @property
    def flops(self) -> float:
        return self.recorded.flops / self.plain.flops

    @property
    def moved(self) -> float:
        return self.recorded.moved / self.plain.moved

    @property
    def extra_memory(self) -> float:
        """MB of activations beyond the peak of the plain pass."""
        return (self.recorded.peak - self.plain.peak) / 1e6

    def added_kernels(self) -> dict[str, int]:
        names = self.recorded.names
        added = {name: count - self.plain.names.get(name, 0) for name, count in names.items()}
        return {name: count for name, count in sorted(added.items(), key=lambda item: -item[1]) if count}


def recorder(model: Any, call: Forward, options: RecordOptions) -> ForwardRecorder:
    """A recorder of the first sample of a forward pass, as the positive prompt is in a sampler's batch."""
    plan = find_family(model).plan(model.diffusion_model)
    frames = plan.frames(call.x.shape[2] if call.x.ndim == 5 else 1)
    tokens = Tokens(tuple(range(WORDS)), True, call.context.shape[1])
    size = (call.x.shape[-2], call.x.shape[-1])
    return ForwardRecorder(plan, options, {"positive": (slice(0, 1), tokens)}, size, len(call.x), frames, call.given)


def measure(name: str, *recordings: RecordOptions) -> list[Cost]:
    """The cost of each way to record a model. Raises RuntimeError if something would have waited for the GPU."""
    model, call = build(name)
    plain_options = {OVERRIDE: flash_attention}
    with torch.inference_mode(), Meter() as plain:
        call.run(model.diffusion_model, plain_options)
    costs = []
    # Shapes have no numbers to compare.
    known, fused.agrees = fused.agrees, lambda total, call: True
    try:
        for options in recordings:
            # The first pass uploads what is kept for all later ones.
            for _ in range(2):
                forward = recorder(model, call, options)
                with torch.inference_mode(), Meter() as recorded, forward.installed(plain_options) as recording:
                    call.run(model.diffusion_model, recording)
                    found = forward.results(on_device=True)["positive"]
                if forward.failure is not None or len(found.layers) != len(forward.plan.blocks):
                    raise RuntimeError(f"{name} was not recorded: {forward.failure}")
                del found
            costs.append(Cost(plain, recorded))
    finally:
        fused.agrees = known
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"models to measure: {', '.join(SIZES)} (default: all)"
    )
    parser.add_argument("--grid", choices=list(GRIDS), default="auto", help="the grid on which layers are compared")
    parser.add_argument(
        "--method", choices=RECORD_METHODS, default="auto", help="what is recorded, as in Record Attention"
    )
    parser.add_argument("--kernels", action="store_true", help="list the kernels that recording adds")
    options = parser.parse_args()
    boot()
    print("| model | kernels | operations | bytes moved | extra memory |\n|---|---|---|---|---|")
    for name in options.models or SIZES:
        (cost,) = measure(name, RecordOptions(grid_limit=GRIDS[options.grid], method=options.method))
        row = (f"{cost.kernels:.2f}", f"{cost.flops:.3f}", f"{cost.moved:.2f}", f"{cost.extra_memory:+.0f} MB")
        print(f"| {SIZES[name].label} | {' | '.join(row)} |", flush=True)
        if options.kernels:
            print(", ".join(f"{kernel} {count:+d}" for kernel, count in cost.added_kernels().items()))


if __name__ == "__main__":
    main()
