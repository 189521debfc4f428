"""Seeing attention: heat maps and masks over the image, words ranked at a pixel, a PNG of what is seen."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from goca_core.picture.colours import COLOUR_MAPS, colour_of
from scripts.comfy_server import ComfyServer

from .editor import Editor
from .panels import RENDERERS, canvas, hover, legend, pixels

if TYPE_CHECKING:
    from playwright.sync_api import ElementHandle

MASKS, OVERLAY = "GOCA_MaskFromTokens", "GOCA_Overlay"
OVER, HEAT = "Masks over the image", "Heat map of every word"


def choose(editor: Editor, panel: ElementHandle, label: str, value: str) -> None:
    select = panel.query_selector(f"select[aria-label='{label}']")
    assert select
    select.select_option(value)
    editor.settle()


def sheet(server: ComfyServer, outputs: dict[str, dict[str, Any]], kind: str) -> dict[str, np.ndarray]:
    """The maps of the first image by name, as the run left them."""
    view = next(shown["goca_view"][0] for shown in outputs.values() if kind in shown.get("goca_view", [{}])[0])
    found = view[kind]
    image = np.asarray(Image.open(io.BytesIO(server.fetch(found["files"][0]))))
    height, width = found["height"], found["width"]
    places = {name: divmod(k, found["columns"]) for k, name in enumerate(found["names"])}
    return {n: image[r * height : (r + 1) * height, c * width : (c + 1) * width] for n, (r, c) in places.items()}


@RENDERERS
def test_viewing_masks_and_words(editor: Editor, server: ComfyServer, tmp_path: Path) -> None:
    outputs = editor.demo().run()
    heat, masks = (sheet(server, outputs, kind) for kind in ("heat", "masks"))
    panel = editor.look_at(MASKS)
    choose(editor, panel, "View", "masks")
    assert [text.rsplit(" ", 2)[0].partition(" (")[0] for text in legend(panel)] == [
        "red circle",
        "blue square",
        "background",
    ]

    # Words are ranked by their maps, and the mask there is named.
    for row, column in ((5, 9), (32, 40), (60, 20)):
        told = hover(editor, panel, (column + 0.5) / 64, (row + 0.5) / 64)
        where = next((name for name, mask in masks.items() if mask[row, column]), "background")
        assert told.startswith(f"{where}: ")
        ranked = [entry.rsplit(" ", 2) for entry in told.partition(": ")[2].split(" · ")]
        wanted = sorted(heat, key=lambda name: -int(heat[name][row, column]))[:5]
        assert [name for name, _, _ in ranked] == wanted
        shares = [100 * int(heat[name][row, column]) / 255 for name in wanted]
        assert [float(share) for _, share, _ in ranked] == pytest.approx(shares, abs=0.51)

    # A word's map in the colours of the chosen map: no image lies under the corner pixel's colour at full opacity.
    choose(editor, panel, "View", "word circle")
    choose(editor, panel, "Colour map", "cividis")
    panel.query_selector("input[type=range]").fill("1")
    editor.settle()
    table = np.array(COLOUR_MAPS["cividis"], dtype=float)
    place = heat["circle"][32, 32] / 255 * (len(table) - 1)
    low = min(int(place), len(table) - 2)
    wanted = table[low] + (table[low + 1] - table[low]) * (place - low)
    scale = pixels(panel).shape[0] / 64
    at = int(32.5 * scale)
    near = pixels(panel)[at - 2 : at + 2, at - 2 : at + 2].reshape(-1, 3)
    assert np.abs(near - wanted).max(1).min() <= 24, "smoothing moves it a little"

    choose(editor, panel, "View", "all")
    assert len(legend(panel)) == 1

    # How the masks came about: a row for each phrase; and what the layers gave.
    choose(editor, panel, "View", "steps")
    assert pixels(panel).shape[1] > 2 * pixels(panel).shape[0] * len(masks) / 4
    assert hover(editor, panel, 0.4, 0.3).startswith(("red circle: ", "blue square: ", "background: "))
    choose(editor, panel, "View", "layers")
    layers = next(shown["goca_view"][0]["layers"] for shown in outputs.values() if "goca_masks" in shown)
    last = len(layers["names"]) - 1
    share = f"{100 * layers['weights'][0][last]:.1f} %"
    assert hover(editor, panel, 0.999, 0.5).startswith(f"layer {last + 1}, {layers['names'][last]}, ")
    assert hover(editor, panel, 0.999, 0.5).endswith(share)
    choose(editor, panel, "View", "all")

    with editor.page.expect_download() as download:
        panel.query_selector("button.goca-tool").click()
    assert re.fullmatch(r"goca_[\w]+\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "seen.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen.png").convert("RGB")), pixels(panel))


@RENDERERS
def test_overlays_show_the_image_once(editor: Editor, server: ComfyServer) -> None:
    outputs = editor.demo().run()
    masks = sheet(server, outputs, "masks")
    panel = editor.look_at(OVERLAY, OVER)
    assert legend(panel) == ["red circle", "blue square"]
    # Every place of a mask is nearest to its colour in the legend, though the circle itself is red; and this is the overlay.
    drawn = pixels(panel)
    palette = np.array([colour_of(k) for k in range(7)])
    nearest = np.linalg.norm(drawn[:, :, None].astype(float) - palette, axis=-1).argmin(-1)
    side = drawn.shape[0] // 64
    for k, mask in enumerate(masks.values()):
        assert (nearest[np.kron(mask, np.ones((side, side))) > 0] == k).all()
    shown = editor.page.evaluate("(node) => window.app.nodeOutputs[node.id].images[0]", editor.node(OVERLAY, OVER))
    saved = np.asarray(Image.open(io.BytesIO(server.fetch(shown))).convert("RGB"))[: drawn.shape[0]]
    assert np.abs(drawn.astype(int) - saved).max() <= 4
    # Full colours where masks are, at full opacity; the image elsewhere.
    editor.set_value(OVERLAY, "opacity", 1, OVER)
    drawn = pixels(panel)
    scale = drawn.shape[0] // 64
    for k, mask in enumerate(masks.values()):
        inside = np.argwhere(mask)
        for row, column in inside[:: max(1, len(inside) // 20)]:
            assert drawn[row * scale + 1, column * scale + 1].tolist() == list(colour_of(k))
    # The slider is the node's own opacity.
    panel.query_selector("input[type=range]").fill("0.25")
    editor.settle()
    value = "(node) => node.widgets.find((w) => w.name === 'opacity').value"
    assert editor.node(OVERLAY, OVER).evaluate(value) == 0.25
    names = editor.node(OVERLAY, OVER).evaluate("(node) => node.widgets.map((w) => w.name)")
    assert not [name for name in names if "image-preview" in name], "ComfyUI shows the image a second time"

    panel = editor.look_at(OVERLAY, HEAT)
    assert legend(panel) == ["All words, from 0 to 1"]
    hover(editor, panel, 0.5, 0.9)
    canvas(panel).click(position={"x": canvas(panel).bounding_box()["width"] / 2, "y": 60})
    editor.settle()
    assert legend(panel) != ["All words, from 0 to 1"], "a click on a small map shows that word"


def test_viewing_by_keyboard(editor: Editor) -> None:
    editor.demo().run()
    panel = editor.look_at(MASKS)
    assert canvas(panel).get_attribute("aria-label").startswith("Masks: red circle ")
    canvas(panel).focus()
    readout = panel.query_selector("[role=status]")
    assert readout.inner_text() == ""
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        editor.page.keyboard.press(key)
    first = readout.inner_text()
    assert "%" in first
    # A word under the keyboard's focus is shown for a moment.
    editor.page.keyboard.press("Shift+Tab")
    chip = editor.page.evaluate("() => document.activeElement.textContent")
    editor.page.keyboard.press("End")
    assert legend(panel) == ["grass, from 0 to 1"], chip
    editor.page.keyboard.press("Tab")
    assert len(legend(panel)) == 3
    labelled = panel.query_selector_all("select, input, canvas")
    assert all(part.get_attribute("aria-label") for part in labelled)


def test_phrases_that_changed_say_so_and_lost_images_too(editor: Editor, server: ComfyServer) -> None:
    outputs = editor.demo().run()
    panel = editor.look_at(MASKS)
    editor.set_value(MASKS, "phrases", "grass")
    assert "Run again" in panel.query_selector(".goca-readout").inner_text()
    key, shown = next((key, shown) for key, shown in outputs.items() if "goca_masks" in shown)
    view = shown["goca_view"][0]
    for part in ("masks", "heat"):
        for file in view[part]["files"]:
            file["filename"] = "gone.png"
    editor.page.evaluate("([key, shown]) => window.app.graph.getNodeById(Number(key)).onExecuted(shown)", [key, shown])
    editor.page.wait_for_function("() => document.body.innerText.includes('no longer available')")
    # The browser itself notes the missing file.
    editor.errors[:] = [error for error in editor.errors if "404" not in error]


@RENDERERS
def test_going_to_another_graph_and_back(editor: Editor) -> None:
    """The editor keeps what ran in each of its own tabs."""
    editor.demo().run()
    before = legend(editor.look_at(MASKS))
    editor.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    editor.page.wait_for_function("() => !window.app.graph.nodes.some((node) => node.type === 'GOCA_MaskFromTokens')")
    editor.page.evaluate("() => window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    editor.page.wait_for_function("() => window.app.graph.nodes.some((node) => node.type === 'GOCA_MaskFromTokens')")
    editor.settle()
    assert legend(editor.look_at(MASKS)) == before
