"""ComfyUI in this process, without its server, for command-line programs."""

from __future__ import annotations

from .host import DEMO_WEIGHTS, ROOT, ComfyUIError, boot, digest, find, version, weights
from .open import open_model

__all__ = ["DEMO_WEIGHTS", "ROOT", "ComfyUIError", "boot", "digest", "find", "open_model", "version", "weights"]
