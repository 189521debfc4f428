"""Files of weights: where the demo model's are, and what to say when a file is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO_WEIGHTS = ROOT / "demo" / "goca_demo.safetensors"
DEMO_LORAS = ROOT / "demo" / "loras"


class ComfyUIError(ValueError):
    """ComfyUI, or a file that it should load, cannot be used. The message is one sentence that says what to do."""


def weights(checkpoint: Path | None) -> Path:
    """The file of a checkpoint, or of the bundled demo model if None. Raises ComfyUIError when it is missing."""
    file = DEMO_WEIGHTS if checkpoint is None else checkpoint
    if file.is_file():
        return file
    if file == DEMO_WEIGHTS:
        raise ComfyUIError(
            f'The demo model\'s weights are missing: there is no file "{file}"; install the pack again, or train the '
            "model with scripts/demo_model/train.py."
        )
    raise ComfyUIError(f'The checkpoint is missing: there is no file "{file}"; check its path.')


def digest(file: Path) -> str:
    """SHA-256 of a file: it identifies the measured weights better than a file name."""
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
