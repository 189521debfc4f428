"""Starts ComfyUI and imports the pack, for scripts that train or measure.

ComfyUI is in COMFYUI_DIR, or where ``make host`` put it. Run these scripts with an interpreter that has ComfyUI's packages.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
# Appended last, because the pack's folder ``nodes`` would hide ComfyUI's module ``nodes``.
sys.path.append(str(ROOT))


def boot(*arguments: str) -> None:
    """Make ComfyUI's modules importable in this process. ``arguments`` is ComfyUI's command line."""
    headless = use("goca_core.capture.headless")
    try:
        headless.boot(*arguments)
    except headless.ComfyUIError as error:
        sys.exit(str(error))


def use(module: str) -> ModuleType:
    """A module of the pack, such as ``goca_core.demo.scenes``."""
    return importlib.import_module(module)
