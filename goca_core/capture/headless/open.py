"""Open a checkpoint in a ComfyUI without its server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import LoadedModel

from ..weights import weights
from .host import boot


def open_model(checkpoint: Path | None = None, *, cpu: bool = False) -> LoadedModel:
    """Start ComfyUI if it is not running and open a checkpoint of any kind that it can load, or the demo model.

    Raises ComfyUIError when ComfyUI or the file is missing, or the file does not hold a model, a text encoder and a VAE.
    """
    file = weights(checkpoint)
    boot(*(["--cpu"] if cpu else []))
    from .model import load_model

    return load_model(None if checkpoint is None else file)
