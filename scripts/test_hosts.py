#!/usr/bin/env python3
"""Run the tests of tests/host on the oldest ComfyUI that they are pinned to, on the newest, and on your own.

    python scripts/test_hosts.py                     takes as long as tests/host in `make test`, for each of them
    python scripts/test_hosts.py --only oldest       only one of them
    python scripts/test_hosts.py -- -k families      pass arguments to pytest

    COMFYUI_DIR=~/ComfyUI python scripts/test_hosts.py --only yours

``yours`` is any other ComfyUI, older or newer. It is used in place and never written to. The older ComfyUI is in
``.host/ComfyUI-<version>``. The environments of both reuse the packages of the newest one, because torch is large, and add
the packages that they need in another version. COMFYUI_PYTHON is an interpreter for yours that is used as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts import host as provider
from scripts.host import ROOT, STORE, TEST_REQUIREMENTS, Host, Release, SetupError, say

STAMP = "goca-stamp.txt"


def older(release: Release, newest: Host) -> Host:
    """Set up an older ComfyUI next to the newest one. Raises SetupError."""
    folder = STORE / f"venv-{release.version}"
    scripts = newest.python.parent.name
    host = Host(STORE / f"ComfyUI-{release.version}", folder / scripts / newest.python.name)
    with provider.alone():
        provider.provide_release(release, host.dir)
        _overlay(folder, host, newest)
    return host


def yours(folder: Path, python: str, newest: Host) -> Host:
    """Set up the environment of a user's own ComfyUI. Raises SetupError."""
    if python:
        return Host(folder, Path(os.path.abspath(Path(python).expanduser())))
    own = STORE / "venv-yours"
    host = Host(folder, own / newest.python.parent.name / newest.python.name)
    with provider.alone():
        _overlay(own, host, newest)
    return host


def version_of(host: Host) -> str:
    """The version of a ComfyUI, as it says itself."""
    file = host.dir / "comfyui_version.py"
    return file.read_text(encoding="utf-8").split('"')[-2] if file.is_file() else "of unknown version"


def _overlay(folder: Path, host: Host, newest: Host) -> None:
    requirements = (host.dir / "requirements.txt", TEST_REQUIREMENTS)
    texts = [str(newest.python), *(file.read_text(encoding="utf-8") for file in requirements)]
    digest, stamp = hashlib.sha256("\0".join(texts).encode()).hexdigest(), folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    say(f"Creating a virtual environment in {folder}, based on {newest.python.parent.parent} ...")
    # Created with the same interpreter, because the two share compiled packages.
    done = subprocess.run([str(newest.python), "-m", "venv", "--clear", "--without-pip", str(folder)])
    if done.returncode:
        raise SetupError(f"{newest.python} could not create a virtual environment in {folder}.")
    own, below = (_packages(python) for python in (host.python, newest.python))
    (own / "newest.pth").write_text(f"{below}\n", encoding="utf-8")
    options = [part for file in requirements for part in ("-r", str(file))]
    provider.run_pip(host.python, "install", "--progress-bar", "off", *options)
    stamp.write_text(digest, encoding="utf-8")


def _packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def run_tests(host: Host, arguments: list[str]) -> int:
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "COMFYUI_DIR": str(host.dir),
        "COMFYUI_PYTHON": str(host.python),
        "GOCA_REQUIRE_HOST": "1",
    }
    folders = [] if any(argument.startswith("tests") for argument in arguments) else ["tests/host"]
    return subprocess.run(
        [str(host.python), "-m", "pytest", *folders, *arguments], cwd=ROOT, env=environment
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests/host on the oldest ComfyUI, the newest, and your own.")
    parser.add_argument("--only", choices=("oldest", "newest", "yours"), help="test on this one only")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="arguments for pytest, after --")
    options = parser.parse_args()
    # The pinned ones are set up as if there were no other.
    given, python = (os.environ.pop(name, "").strip() for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"))
    results: dict[str, int] = {}
    try:
        folder = Path(os.path.abspath(Path(given).expanduser()))
        if options.only == "yours" and not given:
            raise SetupError("Set COMFYUI_DIR to the folder of your ComfyUI.")
        if given and not (folder / "main.py").is_file():
            raise SetupError(f"COMFYUI_DIR={folder} contains no ComfyUI: there is no main.py in it.")
        newest = provider.provide()
        for name in ("oldest", "newest", *(["yours"] if given else [])):
            if options.only not in (None, name):
                continue
            host = newest
            if name != "newest":
                host = older(provider.OLDEST, newest) if name == "oldest" else yours(folder, python, newest)
            label = f"{version_of(host)} ({name})"
            say(f"ComfyUI {label}:")
            results[label] = run_tests(host, options.arguments)
    except SetupError as error:
        print(f"make test-hosts: {error}", file=sys.stderr)
        return 1
    for label, code in results.items():
        say(f"ComfyUI {label}: {'passed' if code == 0 else f'FAILED (pytest ended with {code})'}")
    return max(results.values())


if __name__ == "__main__":
    sys.exit(main())
