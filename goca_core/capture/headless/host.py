"""The host in this process, without its server: found, started, and a model opened in it.

For what runs from a command line: the evaluation, the benchmarks and the scripts. The interpreter must be one that has
the host's packages. Nothing of the host is imported before `boot`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

ROOT = Path(__file__).resolve().parents[3]
DEMO_WEIGHTS = ROOT / "demo" / "goca_demo.safetensors"


class ComfyUIError(ValueError):
    """The host, or what it should load, cannot be used; one sentence that says what to do."""


def find() -> Path:
    """The folder of the host: COMFYUI_DIR, the ComfyUI in whose custom_nodes this pack lies, or what `make host` made.

    Raises ComfyUIError when there is none.
    """
    given = os.environ.get("COMFYUI_DIR", "").strip()
    # Not resolved: the pack may be a link in custom_nodes.
    here = Path(os.path.abspath(__file__)).parents[3]
    candidates = [Path(given).expanduser()] if given else [here.parent.parent, ROOT / ".host" / "ComfyUI"]
    for folder in candidates:
        if (folder / "comfy").is_dir() and (folder / "main.py").is_file():
            return Path(os.path.abspath(folder))
    if given:
        raise ComfyUIError(
            f'COMFYUI_DIR is "{given}", where there is no ComfyUI: set it to the folder that holds main.py.'
        )
    raise ComfyUIError(
        "There is no ComfyUI here: set COMFYUI_DIR to its folder, or run 'make host' in this pack's folder."
    )


def version() -> str:
    """The version of the host, without starting it."""
    file = find() / "comfyui_version.py"
    found = re.search(r'"(.+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else "unknown"


def boot(*arguments: str) -> None:
    """Put the host on the path, with a command line of its own. Does nothing in a process where it already runs.

    arguments: for the host, such as "--cpu"; without any accelerator that one is added. Raises ComfyUIError when there is
    no host, or no torch in this interpreter.
    """
    if "comfy.cli_args" in sys.modules:
        return
    host = find()
    try:
        import torch
    except ImportError:
        raise ComfyUIError(
            "This Python has no torch: use the one that runs ComfyUI ('python scripts/host.py --print python' names the "
            "one that 'make host' made)."
        ) from None
    # The pack's folder comes last, for what is imported later: its `nodes` must not hide the host's.
    kept_path = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, host)]
    sys.path[:] = [str(host), *kept_path, str(ROOT)]
    # The host's tree may be a user's own; not even bytecode is written there.
    sys.dont_write_bytecode = True
    kinds = (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps)
    if not any(kind is not None and kind.is_available() for kind in kinds):
        arguments = tuple(dict.fromkeys((*arguments, "--cpu")))
    kept, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        # Parsed once, when comfy.cli_args is first imported, and only if asked for before.
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = kept


def weights(checkpoint: Path | None) -> Path:
    """The file of a checkpoint, None for the bundled demo model. Raises ComfyUIError when it is not there."""
    file = DEMO_WEIGHTS if checkpoint is None else checkpoint
    if not file.is_file():
        what = "The demo model's weights are" if checkpoint is None else "The checkpoint is"
        raise ComfyUIError(f'{what} missing: there is no file "{file}".')
    return file


def digest(file: Path) -> str:
    """SHA-256 of a file, which says better than its name which weights were measured."""
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
