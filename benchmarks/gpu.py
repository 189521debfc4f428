"""What does the pack cost on a GPU, and is it correct there? One command, no network, random weights.

    python benchmarks/gpu.py                  everything, in under four minutes
    python benchmarks/gpu.py --smoke          a short check of each kind, in under a minute
    python benchmarks/gpu.py sdxl flux        only these stages

Each stage runs in a process of its own with a time limit, so that one that fails or hangs costs only its own figures.
Figures are printed as soon as they are known, and once more as a Markdown table at the end. Needs a GPU, torch 2.8 or newer
and any supported ComfyUI (COMFYUI_DIR, or `make host`). The stages are in gpu_stages.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_stages import MARK, STAGES


def figures(command: list[str], limit: float) -> Iterator[str]:
    """Run a stage and give each figure that it prints. The last one says how it ended if it did not end well."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GOCA_DEVICE": "cuda"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(limit, end)
    timer.start()
    other: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                yield line[len(MARK) :].rstrip()
            else:
                other.append(line.rstrip())
        code = process.wait()
    finally:
        timer.cancel()
        _kill(process)
    if late.is_set():
        yield f"stopped | after {limit:.0f} s"
    elif code:
        print("\n".join(other[-30:]), flush=True)
        yield f"failed | {next((line for line in reversed(other) if line.strip()), f'exit status {code}')}"


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"stages to run: {', '.join(STAGES)} (default: all)")
    parser.add_argument("--smoke", action="store_true", help="fewer models, fewer repeats")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        STAGES[options.stage].run(options.smoke)
        return
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}; choose from {', '.join(STAGES)}")
    rows: list[str] = []
    started = time.monotonic()
    for name in options.stages or [name for name, stage in STAGES.items() if stage.smoke or not options.smoke]:
        begun = time.monotonic()
        command = [sys.executable, __file__, "--stage", name, *(["--smoke"] if options.smoke else [])]
        for figure in figures(command, STAGES[name].limit):
            rows.append(f"| {name} | {figure} |")
            print(rows[-1], flush=True)
        print(f"  ({name}: {time.monotonic() - begun:.0f} s)", flush=True)
    # Not asked before: a process that has used the GPU keeps some of its memory.
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{device}, torch {torch.__version__}, {time.monotonic() - started:.0f} s in all\n")
    print("| stage | what | figures |\n|---|---|---|")
    print("\n".join(row for row in rows if "profile |" not in row))


if __name__ == "__main__":
    main()
