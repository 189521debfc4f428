"""The host and the pack, for scripts that train or measure.

The host is COMFYUI_DIR or what ``make host`` provided; the interpreter must be one that has the host's packages.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
# Last, because the pack's folder ``nodes`` would hide the host's module of that name.
sys.path.append(str(ROOT))


def boot(*arguments: str) -> None:
    """Start the host's modules in this process, with a command line of its own."""
    headless = use("goca_core.capture.headless")
    try:
        headless.boot(*arguments)
    except headless.ComfyUIError as error:
        sys.exit(str(error))


def use(module: str) -> ModuleType:
    """A module of the pack, such as ``goca_core.demo.scenes``."""
    return importlib.import_module(module)
