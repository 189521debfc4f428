#!/usr/bin/env python3
"""Take the screenshots of the help pages (web/docs/images) and of the README (docs/images) in the real editor, and one of each
template as it opens (docs/images/templates).

    .host/venv/bin/python scripts/make_screenshots.py                 # all of them, about a minute
    .host/venv/bin/python scripts/make_screenshots.py GOCA_Overlay    # only those with these names
    .host/venv/bin/python scripts/make_screenshots.py templates       # only the templates

Needs a Chromium and playwright, as tests/browser does.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts.graphs.files import WORKFLOWS, graph_file
from scripts.graphs.thumbnails import pretend_models
from tests.browser.browser import open_editor
from tests.browser.editor import Editor

ROOT = Path(__file__).resolve().parents[1]
HELP, PAGES = ROOT / "web" / "docs" / "images", ROOT / "docs" / "images"
EDGE = 12  # pixels around a node
COLOURS = 128  # enough for the editor, and the file is a third of the size

# The area of a node on the page, with its title bar.
BOX = """(node) => {
  const { canvas } = window.app, { scale, offset } = canvas.ds, own = canvas.canvas.getBoundingClientRect();
  const height = node.flags?.collapsed ? 0 : node.size[1];
  return { x: own.x + (node.pos[0] + offset[0]) * scale, y: own.y + (node.pos[1] - 30 + offset[1]) * scale,
           width: node.size[0] * scale, height: (height + 30) * scale };
}"""
# The area of all groups and nodes.
GRAPH = """() => {
  const { graph, canvas } = window.app, { scale, offset } = canvas.ds, own = canvas.canvas.getBoundingClientRect();
  const boxes = [...graph.nodes.map((node) => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]),
    ...graph.groups.map((group) => [...group.pos, group.pos[0] + group.size[0], group.pos[1] + group.size[1]])];
  const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
  const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])));
  return { x: own.x + (left + offset[0]) * scale, y: own.y + (top + offset[1]) * scale,
           width: (right - left) * scale, height: (bottom - top) * scale };
}"""
# Window sizes: a node fits into the first; a whole graph fits into the second and is still readable.
NEAR: ViewportSize = {"width": 1400, "height": 1300}
WIDE: ViewportSize = {"width": 2200, "height": 1500}
OPENING: ViewportSize = {"width": 1600, "height": 1000}
SMALL = 1280  # pixels: the width of a template's screenshot
FIT = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"


@dataclass(frozen=True)
class View:
    """A screenshot: of a node, or of the whole graph when `kind` is empty. `show`: what the viewer of the node shows."""

    name: str
    graph: str
    kind: str = ""
    title: str = ""
    show: str = ""
    light: bool = False

    @property
    def path(self) -> Path:
        return (HELP if self.name.startswith("GOCA_") else PAGES) / f"{self.name}.png"


FIRST, DEMO = "Masks from words", "Every step"
MASKS, OVERLAY = "GOCA_MaskFromTokens", "GOCA_Overlay"
NODES = {
    DEMO: "DemoModel EncodePrompt RecordAttention CollectAttention Aggregate Rescale MaskFromTokens "
    "SaveAttention LoadAttention Words",
    "Masks of a photo": "SegmentImage MaskFromImage",
    "Sharper masks": "Refine",
    "Detailer by word": "BoxFromMask",
    "Regional prompts": "RegionalPrompt",
    "Regional prompts in one pass": "RegionalPass CollectMasks",
    "Semantic guidance": "SemanticCFG",
}
VIEWS = [
    View("editor", FIRST),
    *(View(f"GOCA_{name}", graph, f"GOCA_{name}") for graph, names in NODES.items() for name in names.split()),
    View("GOCA_Overlay", DEMO, OVERLAY, "Heat map of every word"),
    View("GOCA_LoRAByWord", "Two LoRAs", "GOCA_LoRAByWord", "Stripes on the circle"),
    View("GOCA_LoRAByMask", "Two LoRAs", "GOCA_LoRAByMask", "Stripes in the mask of the circle"),
    View("viewer_steps", DEMO, MASKS, show="steps"),
    View("viewer_layers", DEMO, MASKS, show="layers"),
    View("viewer_light", DEMO, OVERLAY, "Masks over the image", light=True),
]


def take(editor: Editor, view: View) -> bytes:
    """The screenshot as PNG."""
    palette = "light" if view.light else "dark"
    editor.page.evaluate(f"() => window.app.extensionManager.setting.set('Comfy.ColorPalette', '{palette}')")
    editor.page.set_viewport_size(NEAR if view.kind else WIDE)
    if not view.kind:
        editor.page.evaluate(FIT)
        editor.page.wait_for_timeout(1000)  # the view moves there
        return crop(editor, editor.page.evaluate(GRAPH))
    node = editor.centre(view.kind, view.title)
    node.evaluate("(node) => { node.mode = 0; }")  # some are muted in their graph
    if view.show:
        choice = editor.look_at(view.kind, view.title).query_selector("select")
        assert choice is not None
        choice.select_option(view.show)
    editor.page.mouse.move(5, 5)
    editor.settle()
    return crop(editor, node.evaluate(BOX))


def crop(editor: Editor, box: dict[str, float]) -> bytes:
    clip: Any = {"x": box["x"] - EDGE, "y": box["y"] - EDGE}
    clip |= {"width": box["width"] + 2 * EDGE, "height": box["height"] + 2 * EDGE}
    return bytes(editor.page.screenshot(clip=clip))


def save(content: bytes, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(content)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


def pretend_recording(editor: Editor) -> None:
    """Put an empty file where a graph expects what it saved, or the editor marks Load Attention as broken."""
    folder = editor.server.base / "output" / "goca"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo_00001.safetensors").touch()


def take_templates() -> None:
    """Each template at the zoom at which it opens, in a window of a usual size."""
    from PIL import Image

    folder = PAGES / "templates"
    folder.mkdir(exist_ok=True)
    with open_editor(vue=True, width=OPENING["width"], height=OPENING["height"]) as editor:
        pretend_models(editor)
        editor.open()
        for graph in sorted(WORKFLOWS.glob("*.json")):
            editor.load(graph).page.evaluate(FIT)
            editor.page.wait_for_timeout(1500)  # the view moves there, and nodes are drawn one after the other
            image = Image.open(io.BytesIO(editor.page.screenshot())).convert("RGB")
            image.thumbnail((SMALL, SMALL))
            path = folder / f"{graph.stem[:2]}.jpg"
            image.save(path, quality=75, optimize=True)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the screenshots of the help pages in the real editor.")
    parser.add_argument("names", nargs="*", help="screenshots to take (default: all)")
    names = parser.parse_args().names
    views = [view for view in VIEWS if not names or view.name in names]
    if not names or "templates" in names:
        take_templates()
    if not views:
        return
    with open_editor(vue=True, width=NEAR["width"], height=NEAR["height"]) as editor:
        pretend_recording(editor)
        editor.open()
        for graph in dict.fromkeys(view.graph for view in views):
            editor.load(graph_file(graph)).queue()
            editor.page.wait_for_timeout(1000)  # images of the run are still on their way
            for view in views:
                if view.graph == graph:
                    save(take(editor, view), view.path)


if __name__ == "__main__":
    main()
