"""Find and start ComfyUI in this process, without its server, and open a model in it.

For command-line programs: the evaluation, the benchmarks and the scripts. The Python that runs them must have ComfyUI's
packages. Nothing of ComfyUI is imported before `boot`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..weights import ROOT, ComfyUIError, weights

if TYPE_CHECKING:
    from .model import LoadedModel


def find() -> Path:
    """ComfyUI's folder: COMFYUI_DIR, the ComfyUI with this pack in custom_nodes, or the one that `make host` installed.

    Raises ComfyUIError when there is none.
    """
    given = os.environ.get("COMFYUI_DIR", "").strip()
    # Links are not resolved: the pack may be linked into custom_nodes.
    here = Path(os.path.abspath(__file__)).parents[3]
    candidates = [Path(given).expanduser()] if given else [here.parent.parent, ROOT / ".host" / "ComfyUI"]
    for folder in candidates:
        if (folder / "comfy").is_dir() and (folder / "main.py").is_file():
            return Path(os.path.abspath(folder))
    if given:
        raise ComfyUIError(
            f'COMFYUI_DIR is "{given}", but that folder holds no ComfyUI; set it to the folder with ComfyUI\'s main.py.'
        )
    raise ComfyUIError("No ComfyUI was found; set COMFYUI_DIR to its folder, or run 'make host' in this pack's folder.")


def version() -> str:
    """ComfyUI's version, read without starting it."""
    file = find() / "comfyui_version.py"
    found = re.search(r'"(.+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else "unknown"


def boot(*arguments: str) -> None:
    """Make ComfyUI importable, with command-line arguments of its own. Does nothing if it already runs in this process.

    ``arguments``: for ComfyUI, such as "--cpu", which is added when there is no accelerator. Raises ComfyUIError when
    ComfyUI is missing, or torch is missing from this Python.
    """
    if "comfy.cli_args" in sys.modules:
        return
    folder = find()
    try:
        import torch
    except ImportError:
        raise ComfyUIError(
            "This Python has no torch; use the Python that runs ComfyUI ('python scripts/host.py --print python' "
            "prints the one that 'make host' installed)."
        ) from None
    # The pack's folder goes last: its `nodes` must not shadow ComfyUI's.
    other_paths = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, folder)]
    sys.path[:] = [str(folder), *other_paths, str(ROOT)]
    # This may be the user's own ComfyUI, so not even bytecode is written there.
    sys.dont_write_bytecode = True
    kinds = (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps)
    if not any(kind is not None and kind.is_available() for kind in kinds):
        arguments = tuple(dict.fromkeys((*arguments, "--cpu")))
    original, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        # ComfyUI parses its arguments once, when comfy.cli_args is first imported, and only if that was enabled before.
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = original


def open_model(checkpoint: Path | None = None, *, cpu: bool = False) -> LoadedModel:
    """Start ComfyUI if it is not running and open a checkpoint of any kind that it can load, or the demo model.

    Raises ComfyUIError when ComfyUI or the file is missing, or the file does not hold a model, a text encoder and a VAE.
    """
    file = weights(checkpoint)
    boot(*(["--cpu"] if cpu else []))
    from .model import load_model

    return load_model(None if checkpoint is None else file)
