"""Files of weights: where those of the demo models are, and what to say when a file is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO_WEIGHTS = ROOT / "demo" / "goca_demo.safetensors"
DEMO_LORAS = ROOT / "demo" / "loras"
# The bundled files by the kind of scenes that they generate, as scripts/demo_model/train.py names it.
BUNDLED = {"things": ROOT / "demo" / "things.safetensors", "shapes": DEMO_WEIGHTS}


class ComfyUIError(ValueError):
    """ComfyUI, or a file that it should load, cannot be used. The message is one sentence that says what to do."""


def weights(checkpoint: Path | None) -> Path:
    """The file of a checkpoint, or of the demo model of shapes if None. Raises ComfyUIError when it is missing."""
    file = DEMO_WEIGHTS if checkpoint is None else checkpoint
    if file.is_file():
        return file
    kind = next((name for name, bundled in BUNDLED.items() if bundled == file), None)
    if kind is not None:
        raise ComfyUIError(
            f'The demo model\'s weights are missing: there is no file "{file}"; install the pack again, or train the '
            f"model with scripts/demo_model/train.py --kind {kind}."
        )
    raise ComfyUIError(f'The checkpoint is missing: there is no file "{file}"; check its path.')


def digest(file: Path) -> str:
    """SHA-256 of a file: it identifies the measured weights better than a file name."""
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
