"""Starts ComfyUI in this process, for scripts that train or measure.

ComfyUI is in COMFYUI_DIR, or where ``make host`` put it. Run these scripts with an interpreter that has ComfyUI's packages.
Modules of the pack that need ComfyUI, such as goca_core.capture.demo_model, can only be imported after `boot`.
"""

from __future__ import annotations

import sys

from goca_core.capture import headless


def boot(*arguments: str) -> None:
    """Make ComfyUI's modules importable in this process. ``arguments`` is ComfyUI's command line."""
    try:
        headless.boot(*arguments)
    except headless.ComfyUIError as error:
        sys.exit(str(error))
