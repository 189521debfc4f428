#!/usr/bin/env python3
"""Measure how many small errors in goca_core the unit tests find.

    .host/venv/bin/python scripts/mutation.py                      # the modules of the method, about 15 minutes on one core
    .host/venv/bin/python scripts/mutation.py refine capture/rows  # other modules or whole packages of goca_core
    .host/venv/bin/python scripts/mutation.py heads --show         # also print every error that no test finds

mutmut makes the errors in a copy of the project in .host/mutants, one at a time: it swaps operators, changes numbers and
texts and drops arguments. A test that fails has found the error. Only the test files that import one of the modules run.
Some errors change nothing that a test could see, so read the rest before you write a test. mutmut does not change the
constants of a module.

Needs only the standard library. mutmut is installed into .host/mutation.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from scripts import host

MUTMUT = "mutmut==3.8.1"
ENVIRONMENT = host.STORE / "mutation"
COPY = host.STORE / "mutants"
METHOD = ("heads", "layers", "rescale", "masks", "words")
# What mutmut calls an error that a test found.
FOUND = {"killed", "timeout", "suspicious", "segfault", "caught by type check"}


class MutationError(Exception):
    """An error message for the user."""


def sources(modules: Sequence[str]) -> list[str]:
    """The files of the modules, as patterns for mutmut."""
    found = []
    for module in modules:
        path = host.ROOT / "goca_core" / module
        if path.is_dir():
            found.append(f"goca_core/{module}/*")
        elif path.with_suffix(".py").is_file():
            found.append(f"goca_core/{module}.py")
        else:
            raise MutationError(f"There is no module {module!r} in goca_core; write names like heads or capture/rows.")
    return found


def imported(path: Path) -> Iterator[str]:
    """The modules of goca_core that a file imports, with names like "capture/rows"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "goca_core":
            package = node.module.split(".")[1:]
            yield "/".join(package)
            yield from ("/".join([*package, name.name]) for name in node.names)


def tests_of(modules: Sequence[str]) -> list[str]:
    """The test files that import one of the modules, or something from it."""
    found = [
        path.relative_to(host.ROOT).as_posix()
        for path in sorted((host.ROOT / "tests" / "unit").glob("test_*.py"))
        if any(name == module or name.startswith(f"{module}/") for name in imported(path) for module in modules)
    ]
    if not found:
        raise MutationError(f"No file in tests/unit imports {' or '.join(modules)}.")
    return found


def provide_mutmut() -> Path:
    """Install mutmut if needed. Returns the folder of its command."""
    programs = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    stamp, python = ENVIRONMENT / "stamp.txt", host.locate().python
    wanted = f"{MUTMUT} {python}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return programs
    host.say(f"Installing {MUTMUT} ...")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([python, "-m", "venv", ENVIRONMENT], check=True)
    host.run_pip(programs / "python", "install", "--quiet", MUTMUT)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs, ours = (
        subprocess.run([one, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        for one in (python, programs / "python")
    )
    Path(ours, "comfyui.pth").write_text(f"{theirs}\n", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return programs


def make_copy(files: Sequence[str], tests: Sequence[str]) -> None:
    """Copy what the unit tests need, and add the settings of mutmut."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in ("goca_core", "scripts", "tests/unit", "tests/golden"):
        shutil.copytree(host.ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(host.ROOT / "tests" / "conftest.py", COPY / "tests")
    settings = {
        "source_paths": ["goca_core"],
        "only_mutate": list(files),
        "also_copy": ["scripts"],
        # An endless loop is stopped after (expected seconds + constant) x multiplier.
        "timeout_multiplier": 2.0,
        "timeout_constant": 10.0,
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": list(tests),
    }
    lines = [(host.ROOT / "pyproject.toml").read_text(encoding="utf-8"), "[tool.mutmut]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (COPY / "pyproject.toml").write_text("\n".join([*lines, ""]), encoding="utf-8")


def results(mutmut: Path) -> dict[str, str]:
    """The result of each error by name."""
    told = subprocess.run(
        [mutmut, "results", "--all", "1"], cwd=COPY, check=True, capture_output=True, text=True
    ).stdout
    return dict(line.strip().rsplit(": ", 1) for line in told.splitlines() if ": " in line)


def table(found: dict[str, str]) -> list[str]:
    """Lines with the number of errors found in each module and in all."""
    counts: dict[str, Counter[bool]] = {}
    for name, status in found.items():
        for row in (name.rsplit(".", 1)[0].removeprefix("goca_core."), "together"):
            counts.setdefault(row, Counter())[status in FOUND] += 1
    counts["together"] = counts.pop("together", Counter())
    width = max(map(len, counts))
    return [
        f"{row:<{width}}  {count[True]:5} of {count.total():5} found, {count[True] / max(count.total(), 1):6.1%}"
        for row, count in counts.items()
    ]


def measure(modules: Sequence[str], jobs: int, show: bool) -> None:
    files, tests = sources(modules), tests_of(modules)
    mutmut = provide_mutmut() / "mutmut"
    make_copy(files, tests)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [mutmut, "run", "--max-children", str(jobs)], cwd=COPY, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise MutationError("mutmut stopped (see above); check that the unit tests pass.")
    found = results(mutmut)
    left = [name for name, status in found.items() if status not in FOUND]
    if show:
        for name in left:
            subprocess.run([mutmut, "show", name], cwd=COPY, check=True)
    else:
        print("\n".join(["", "Not found by any test:", *left, ""]))
    print("\n".join(table(found)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how many small errors in goca_core the unit tests find.")
    parser.add_argument(
        "modules", nargs="*", default=METHOD, help=f"modules of goca_core (default: {' '.join(METHOD)})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--show", action="store_true", help="print every error that no test finds")
    options = parser.parse_args()
    try:
        measure([module.strip("/").removesuffix(".py") for module in options.modules], options.jobs, options.show)
    except (MutationError, host.SetupError) as error:
        print(f"mutation.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
