#!/usr/bin/env python3
"""Check the pack as the registry and comfy-test do: `comfy node validate` and `comfy-test lint`.

    python scripts/check_registry.py <the folder of both commands>

Warnings of `comfy node validate` fail too; it exits with status zero then. It stores settings in the home directory, so it gets a
temporary one here. `comfy-test lint` gets what users get: the files of git, without what .comfyignore names. It warns that
it cannot read the selectors of web/js/dom.js, whose style sheet is not in an element that packs share; they are all the pack's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str], folder: Path) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "COLUMNS": "120", "DO_NOT_TRACK": "1"}
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
    output = (done.stdout + done.stderr).strip()
    print(output)
    return done.returncode, output


def shipped(pattern: str = "*") -> list[str] | None:
    """The files that the registry gets, by their names in the project; None without git: nobody knows which they are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    if listed.returncode:
        return None
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = {line.strip("/") for line in lines if line and not line.startswith("#")}
    return [name for name in listed.stdout.split("\0") if name and name.split("/")[0] not in ignored]


def main() -> int:
    commands = Path(sys.argv[1]).absolute()
    status, output = run([str(commands / "comfy"), "--skip-prompt", "--no-enable-telemetry", "node", "validate"], ROOT)
    failed = ["`comfy node validate`"] if status or "warning" in output.lower() else []
    with tempfile.TemporaryDirectory() as copy:
        names = shipped()
        if names is not None:
            for name in filter(lambda name: (ROOT / name).is_file(), names):
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, Path(copy) / name)
            status, _ = run([str(commands / "comfy-test"), "lint", "."], Path(copy))
            failed += ["`comfy-test lint`"] if status else []
        else:
            print("check_registry: this is no checkout of git, so `comfy-test lint` was left out")
    if failed:
        print(f"check_registry: {' and '.join(failed)} reported problems (see above)", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
