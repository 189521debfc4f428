#!/usr/bin/env python3
"""Whether two checkouts of this pack give the same numbers, to the last bit.

    python scripts/compare_checkouts.py OTHER              this checkout and another one
    python scripts/compare_checkouts.py OTHER --keep DIR   the results of the other one are kept in DIR, or taken from it
    python scripts/compare_checkouts.py --keep DIR         from DIR alone
    python scripts/compare_checkouts.py OTHER --only 'sd15*'

Each checkout runs in a process of its own, loaded as ComfyUI loads a pack, and is asked through its nodes alone: what
is inside of it may have other names. `checkout_runs.py` has the runs. Run this with ComfyUI's interpreter.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "scripts" / "checkout_runs.py"
INDEX = "index.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the results of the other one are kept")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="the runs to do, such as 'sd15*'")
    asked = parser.parse_args()
    kept = asked.keep is not None and (asked.keep / INDEX).is_file()
    if asked.other is None and not kept:
        parser.error("Name the other checkout, or a folder with its results (--keep DIR).")
    with tempfile.TemporaryDirectory(prefix="goca-compare-") as temporary:
        own = Path(temporary) / "own"
        other = asked.keep or Path(temporary) / "other"
        started = [_start(ROOT, own, asked.only)]
        if not kept:
            started.append(_start(asked.other.resolve(), other, asked.only))
        ended = [process.wait() for process in started]
        if any(ended):
            print("The runs did not come to their end.")
            return 2
        return _report(_index(own, asked.only), _index(other, asked.only), own, other)


def _start(checkout: Path, results: Path, pattern: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(RUNS), str(checkout), str(results), pattern]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})


def _index(results: Path, pattern: str) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((results / INDEX).read_text(encoding="utf-8"))
    return {name: facts for name, facts in index.items() if fnmatch.fnmatch(name, pattern)}


def _report(own: dict[str, Any], other: dict[str, Any], own_folder: Path, other_folder: Path) -> int:
    equal = failed = arrays = 0
    for name in {**other, **own}:
        if name not in own or name not in other:
            print(f"DIFFERENT  {name}: only in {'the other checkout' if name not in own else 'this checkout'}")
            continue
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (other_folder, own_folder))
        found = _facts(other[name], own[name]) + _arrays(first, second)
        error = own[name].get("error")
        failed += error is not None
        arrays += len(second)
        equal += not found
        if found:
            print(f"DIFFERENT  {name}: {'; '.join(found[:6])}{f'; {len(found) - 6} more' if len(found) > 6 else ''}")
        else:
            print(f"equal      {name}: {len(second)} arrays" + (f", but it raised {error}" if error else ""))
    different = len({**other, **own}) - equal
    print(f"{equal} runs equal ({arrays} arrays), {different} different, {failed} raised an error")
    return int(different > 0 or not equal)


def _facts(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return [f"{key}: {_short(first.get(key))} -> {_short(second.get(key))}" for key in keys]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:160] + "..."


def _arrays(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    found = []
    for name in {**first, **second}:
        if name not in first or name not in second:
            found.append(f"{name} is only in {'the other checkout' if name in first else 'this checkout'}")
            continue
        one, two = first[name], second[name]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            found.append(f"{name} {one.dtype}{list(one.shape)} -> {two.dtype}{list(two.shape)}")
        elif not torch.equal(*(value.contiguous().flatten().view(torch.uint8) for value in (one, two))):
            away = (one.double() - two.double()).abs().nan_to_num(float("inf")).max()
            found.append(f"{name} max abs {float(away):.3g}")
    return found


if __name__ == "__main__":
    sys.exit(main())
