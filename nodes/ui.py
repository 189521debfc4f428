"""What nodes send to the browser besides their outputs: prompt words, and small temporary image files."""

from __future__ import annotations

import uuid
from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.picture import sheets as view
from ..goca_core.picture.batch import OverlayLayers
from ..goca_core.pipeline import MaskResult


def words(found: Any) -> dict[str, Any]:
    """The words of a prompt, as text and as data."""
    return {"text": (found.describe(),), "goca_words": [view.word_table(found)]}


def masks(result: MaskResult, scores: Any, given: Any, image: Any = None) -> dict[str, Any]:
    """Mask areas, the masks with their steps, layer weights, a heat map for each prompt word, and the image if there is one."""
    shown = {
        "words": view.word_table(scores.maps.tokens.word_map(given)),
        "masks": _sheet(view.mask_sheet(result)),
        "steps": _sheet(view.step_sheet(result, scores)),
        "layers": view.layer_weights_table(result, scores.maps),
    }
    heat = view.heat_sheet(result, scores, given)
    if heat is not None:
        shown["heat"] = _sheet(heat)
    if image is not None:
        shown["picture"] = _picture(image)
    return {"goca_masks": [result.table()], "goca_view": [shown]}


def overlay(pictures: Any, layers: OverlayLayers) -> dict[str, Any]:
    """The images, and the masks or heat maps over them."""
    kind = "heat" if layers.heat else "masks"
    return {"goca_view": [{kind: _sheet(view.overlay_sheet(layers)), "picture": _picture(pictures)}]}


def _picture(images: Any) -> dict[str, Any]:
    return {"files": _saved(view.thumbnail(images))}


def _sheet(found: view.Sheet) -> dict[str, Any]:
    return {**found.layout(), "files": _saved(found.image)}


def _saved(pictures: Any) -> list[Any]:
    """One temporary file for each image, without metadata and under a name that cannot be guessed."""
    return ui.ImageSaveHelper.save_images(pictures, f"goca_{uuid.uuid4().hex}", io.FolderType.temp, None, 1)
