#!/usr/bin/env python3
"""Run the tests of tests/host on the oldest ComfyUI that the pack supports, and then on the newest.

    python scripts/test_hosts.py                     both; takes twice as long as tests/host in `make test`
    python scripts/test_hosts.py --only oldest       only one of them
    python scripts/test_hosts.py -- -k families      pass arguments to pytest

The older ComfyUI is in ``.host/ComfyUI-<version>``. Its environment reuses the packages of the newest one, because torch is
large, and adds the packages that the older one needs in another version.
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
    parser = argparse.ArgumentParser(description="Run tests/host on the oldest supported ComfyUI and on the newest.")
    parser.add_argument("--only", choices=("oldest", "newest"), help="test on this one only")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="arguments for pytest, after --")
    options = parser.parse_args()
    results: dict[str, int] = {}
    try:
        newest = provider.provide()
        for name, release in (("oldest", provider.OLDEST), ("newest", provider.NEWEST)):
            if options.only in (None, name):
                host = older(release, newest) if name == "oldest" else newest
                say(f"ComfyUI {release.version} ({name}):")
                results[release.version] = run_tests(host, options.arguments)
    except SetupError as error:
        print(f"make test-hosts: {error}", file=sys.stderr)
        return 1
    for version, code in results.items():
        say(f"ComfyUI {version}: {'passed' if code == 0 else f'FAILED (pytest ended with {code})'}")
    return max(results.values())


if __name__ == "__main__":
    sys.exit(main())
