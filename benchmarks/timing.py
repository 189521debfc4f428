"""Time and peak memory, for the benchmarks of what the pack costs."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

Clock = Callable[[], float]


def processor_clock() -> Clock:
    """The clock for ratios: processor time of one thread, which other work on the machine hardly changes, or a GPU's time."""
    if torch.cuda.is_available():
        return time.perf_counter
    torch.set_num_threads(1)
    return time.process_time


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    """Seconds that an action takes, with all that it starts on a GPU."""
    synchronize()
    start = clock()
    action()
    synchronize()
    return clock() - start


def median_of(measures: Mapping[str, Callable[[], float]], repeat: int, warm: int = 1) -> dict[str, float]:
    """The median of what each returns. They alternate; the first ``warm`` rounds do not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(warm + repeat):
        for name, measure in measures.items():
            value = measure()
            if turn >= warm:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def medians(
    actions: Mapping[str, Callable[[], Any]], repeat: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each action. The actions alternate, and a first round that does not count warms up."""
    return median_of({name: partial(seconds_of, action, clock) for name, action in actions.items()}, repeat)


def device() -> str:
    """The device that is measured, for the heading of a table."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{count} CPU thread{'s' if count > 1 else ''}"


def peak_memory() -> int:
    """The peak memory of this process in MB: GPU memory, or system memory if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure_peaks(script: str, variants: Iterable[str], *arguments: str) -> dict[str, int]:
    """The peak memory that ``script --peak VARIANT`` prints, for each variant in a process of its own.

    The variable makes glibc return freed blocks of a megabyte and more to the system at once. Otherwise the peak would also
    count memory that the allocator only keeps for later, and that differs from run to run.
    """
    peaks, environment = {}, {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    for variant in variants:
        command = [sys.executable, script, "--peak", variant, *arguments]
        lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
        peaks[variant] = json.loads(lines[-1])
    return peaks
