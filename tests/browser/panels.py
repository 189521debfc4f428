"""What the pack shows on a node: its words, its viewer, and what a pointer finds there."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from .editor import Editor

if TYPE_CHECKING:
    from playwright.sync_api import ElementHandle

# A test of what both renderers of nodes do; its `editor` is one of each.
RENDERERS = pytest.mark.parametrize("editor", [False, True], ids=["classic", "vue"], indirect=True)


def chips(panel: ElementHandle) -> dict[str, ElementHandle]:
    return {chip.inner_text(): chip for chip in panel.query_selector_all(".goca-chip")}


def pressed(panel: ElementHandle) -> list[str]:
    return [name for name, chip in chips(panel).items() if chip.get_attribute("aria-pressed") == "true"]


def legend(panel: ElementHandle) -> list[str]:
    """The entries of a legend. It comes with the images of a run, which a busy machine fetches some time after its end."""
    panel.wait_for_selector(".goca-legend li", state="attached")
    return [entry.inner_text() for entry in panel.query_selector_all(".goca-legend li")]


def canvas(panel: ElementHandle) -> ElementHandle:
    found = panel.query_selector("canvas")
    assert found
    return found


def pixels(panel: ElementHandle) -> np.ndarray:
    """What the viewer has drawn, [H, W, 3]. As a file, because playwright takes a minute for as many numbers."""
    url = canvas(panel).evaluate("(canvas) => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def hover(editor: Editor, panel: ElementHandle, x: float, y: float) -> str:
    """Point at a place of the image, from 0 to 1; what is told about it."""
    box, (width, height) = (
        canvas(panel).bounding_box(),
        canvas(panel).evaluate("(canvas) => [canvas.width, canvas.height]"),
    )
    assert box
    scale = min(box["width"] / width, box["height"] / height)
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    editor.page.mouse.move(centre[0] + (x - 0.5) * width * scale, centre[1] + (y - 0.5) * height * scale)
    readout = panel.query_selector(".goca-readout")
    assert readout
    return readout.inner_text()
