"""Start the host's modules in this process and import the pack beside them, for scripts that train or measure.

The host is COMFYUI_DIR or what ``make host`` provided; the interpreter must be one that has the host's packages.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui_goca"


def boot(*arguments: str) -> None:
    """Put the host on the path with a command line of its own, and make the pack importable as ``comfyui_goca``.

    The pack needs a name of its own because its folder ``nodes`` would hide the host's module of that name.
    """
    host = Path(os.environ.get("COMFYUI_DIR") or ROOT / ".host" / "ComfyUI")
    if not (host / "comfy").is_dir():
        sys.exit(f"No ComfyUI at {host.name!r}: set COMFYUI_DIR or run 'make host' first.")
    try:
        import torch
    except ImportError:
        sys.exit("This Python has no torch: use the host's interpreter ('python scripts/host.py --print' names it).")
    sys.path[:] = [str(host), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    sys.dont_write_bytecode = True
    kept, sys.argv = sys.argv, ["main.py", *arguments, *([] if torch.cuda.is_available() else ["--cpu"])]
    try:
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = kept
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = package
    spec.loader.exec_module(package)
    # The real package of nodes imports all of them and with them the host's API; scripts want single modules of it.
    nodes = ModuleType(f"{PACK}.nodes")
    nodes.__path__ = [str(ROOT / "nodes")]
    sys.modules[nodes.__name__] = nodes


def use(module: str) -> ModuleType:
    """A module of the pack, such as ``goca_core.scenes``."""
    return importlib.import_module(f"{PACK}.{module}")
