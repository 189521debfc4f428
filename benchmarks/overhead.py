"""What does recording cost? Measures a full-size SD1.5 with random weights, with and without recording.

    python benchmarks/overhead.py

Prints a Markdown table: one recorded forward pass compared with a plain one, a sampling run with the default step window
compared with one without recording, and the peak memory compared with an implementation that keeps all maps. Each memory
value is measured in its own process, because the system only reports the peak of a whole process. Times on a CPU are
processor time on one thread: some 25 minutes, of which other work on the machine hardly changes the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.random_models import clip_prompt, keeping_all, sample, sd15
from benchmarks.timing import Clock, device, measure_peaks, medians, peak_memory, processor_clock, synchronize
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import record
from goca_core.capture.window import Window
from scripts.boot import boot

VARIANTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "recorded": lambda model: record(model, Window(), RecordOptions(method="auto"))[0],
    "keeping all": keeping_all,
}
TIMED = ("plain", "recorded")
ONE_STEP = (0.346, 0.0)


def step_times(model: Any, positive: list[Any], sigmas: list[float], side: int, clock: Clock) -> list[float]:
    """Seconds of every step of a run, then of everything after the last step."""
    marks = [clock()]

    def mark(*_: Any) -> None:
        synchronize()
        marks.append(clock())

    sample(model, positive, sigmas, side, callback=mark)
    mark()
    return [end - start for start, end in pairwise(marks)]


def ratio(found: dict[str, float]) -> str:
    return f"{found['recorded'] / found['plain']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--repeat", type=int, default=5, help="forward passes of each kind, alternating; the median is reported"
    )
    parser.add_argument("--runs", type=int, default=1, help="pairs of sampling runs of each kind, alternating")
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    side = options.size // 8
    peaks = {} if options.peak else measure_peaks(__file__, VARIANTS, f"--size={options.size}")
    boot()
    import comfy.samplers

    model, positive = sd15(), clip_prompt()
    if options.peak:
        sample(VARIANTS[options.peak](model), positive, ONE_STEP, side)
        print(json.dumps(peak_memory()))
        return
    passes = {name: lambda of=VARIANTS[name]: sample(of(model), positive, ONE_STEP, side) for name in TIMED}
    clock = processor_clock()
    forward = medians(passes, options.repeat, clock)
    sampling = model.get_model_object("model_sampling")
    schedule = comfy.samplers.calculate_sigmas(sampling, "normal", options.steps).tolist()
    runs: dict[str, list[list[float]]] = {name: [] for name in TIMED}
    # The order is plain, recorded, recorded, plain: a machine that gets slower or faster then favours neither.
    for name in [*TIMED, *reversed(TIMED)] * options.runs:
        runs[name].append(step_times(VARIANTS[name](model), positive, schedule, side, clock))
    # Each step counts with its best time, because other work on the machine slows down some steps of some runs.
    run = {name: sum(map(min, zip(*found, strict=True))) for name, found in runs.items()}
    recorded, kept = (peaks[name] - peaks["plain"] for name in ("recorded", "keeping all"))
    print(f"SD1.5 at full size, {options.size}x{options.size}, batch 1, torch {torch.__version__}, {device()}\n")
    print("| | without | recorded | ratio |\n|---|---|---|---|")
    for title, found, digits in (
        (f"one recorded forward pass (median of {options.repeat})", forward, 2),
        (f"{options.steps} steps, default window (best of {2 * options.runs} for each step)", run, 1),
    ):
        print(f"| {title} | {' | '.join(f'{found[name]:.{digits}f} s' for name in TIMED)} | {ratio(found)} |")
    print(f"| peak memory | {peaks['plain']} MB | {peaks['recorded']} MB | +{recorded} MB |")
    print(f"| peak memory, keeping all maps | {peaks['plain']} MB | {peaks['keeping all']} MB | +{kept} MB |")


if __name__ == "__main__":
    main()
