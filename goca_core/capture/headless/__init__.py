"""ComfyUI in this process, without its server, for command-line programs."""

from __future__ import annotations

from ..weights import DEMO_WEIGHTS, ROOT, ComfyUIError, digest, weights
from .host import boot, find, open_model, version

__all__ = ["DEMO_WEIGHTS", "ROOT", "ComfyUIError", "boot", "digest", "find", "open_model", "version", "weights"]
