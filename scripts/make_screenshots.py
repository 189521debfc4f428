#!/usr/bin/env python3
"""Take the screenshots of the help pages (web/docs/images) and of the README (docs/images) in the real editor.

    .host/venv/bin/python scripts/make_screenshots.py                 # all of them, about a minute
    .host/venv/bin/python scripts/make_screenshots.py GOCA_Overlay    # only those with these names

Needs a Chromium and playwright, like tests/browser. With --url it uses a running ComfyUI instead of starting one.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

sys.path.append(str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
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
FIT = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"


@dataclass(frozen=True)
class Shot:
    """A screenshot of a node, or of the whole graph if `kind` is empty. `show` selects the view of the node's viewer."""

    name: str
    graph: str
    kind: str = ""
    title: str = ""
    show: str = ""
    light: bool = False

    @property
    def path(self) -> Path:
        return (HELP if self.name.startswith("GOCA_") else PAGES) / f"{self.name}.png"


DEMO = "masks_from_words_demo"
MASKS, OVERLAY = "GOCA_MaskFromTokens", "GOCA_Overlay"
OF_DEMO = ("DemoModel", "EncodePrompt", "RecordAttention", "CollectAttention", "Aggregate", "Rescale", "MaskFromTokens")
SHOTS = [
    Shot("editor", DEMO),
    *(Shot(f"GOCA_{name}", DEMO, f"GOCA_{name}") for name in OF_DEMO),
    Shot("GOCA_Overlay", DEMO, OVERLAY, "Heat map of every word"),
    Shot("viewer_steps", DEMO, MASKS, show="steps"),
    Shot("viewer_layers", DEMO, MASKS, show="layers"),
    Shot("viewer_light", DEMO, OVERLAY, "Masks over the picture", light=True),
    Shot("GOCA_SegmentImage", "segment_photo_demo", "GOCA_SegmentImage"),
    Shot("GOCA_Refine", "sharper_masks_demo", "GOCA_Refine"),
    Shot("GOCA_RegionalPrompt", "regional_prompts_demo", "GOCA_RegionalPrompt"),
    *(Shot(f"GOCA_{n}", "regional_one_pass_demo", f"GOCA_{n}") for n in ("RegionalPass", "CollectMasks")),
    Shot("GOCA_SemanticCFG", "semantic_cfg_demo", "GOCA_SemanticCFG"),
    *(
        Shot(f"GOCA_{n}", "save_and_reuse_attention_demo", f"GOCA_{n}")
        for n in ("Words", "SaveAttention", "LoadAttention")
    ),
]


def take(editor: Any, shot: Shot) -> bytes:
    """The screenshot as PNG."""
    palette = "light" if shot.light else "dark"
    editor.page.evaluate(f"() => window.app.extensionManager.setting.set('Comfy.ColorPalette', '{palette}')")
    editor.page.set_viewport_size(NEAR if shot.kind else WIDE)
    if not shot.kind:
        editor.page.evaluate(FIT)
        editor.page.wait_for_timeout(1000)  # the view is animated
        return crop(editor, editor.page.evaluate(GRAPH))
    node = editor.centre(shot.kind, shot.title)
    if shot.show:
        editor.look_at(shot.kind, shot.title).query_selector("select").select_option(shot.show)
    editor.page.mouse.move(5, 5)
    editor.settle()
    return crop(editor, node.evaluate(BOX))


def crop(editor: Any, box: dict[str, float]) -> bytes:
    clip = {
        "x": box["x"] - EDGE,
        "y": box["y"] - EDGE,
        "width": box["width"] + 2 * EDGE,
        "height": box["height"] + 2 * EDGE,
    }
    return bytes(editor.page.screenshot(clip=clip))


def keep(content: bytes, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def by_graph(shots: list[Shot]) -> Iterator[tuple[str, list[Shot]]]:
    for name in dict.fromkeys(shot.graph for shot in shots):
        yield name, [shot for shot in shots if shot.graph == name]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Take the screenshots of the help pages and the README in the real editor."
    )
    parser.add_argument("names", nargs="*", help="screenshots to take (default: all)")
    parser.add_argument("--url", help="address of a running ComfyUI with this pack (default: start one)")
    options = parser.parse_args()
    chosen = [shot for shot in SHOTS if not options.names or shot.name in options.names]
    from playwright.sync_api import sync_playwright

    from scripts.comfy_server import ComfyServer
    from tests.browser.browser import launch
    from tests.browser.editor import WORKFLOWS, Editor

    server: Any = SimpleNamespace(url=options.url) if options.url else ComfyServer()
    try:
        if not options.url:
            server.start()
        with sync_playwright() as playwright:
            context = launch(playwright).new_context(viewport=NEAR)
            editor = Editor(context.new_page(), server, vue=True).open()
            for name, shots in by_graph(chosen):
                editor.load(WORKFLOWS / f"{name}.json").queue()
                editor.page.wait_for_timeout(1000)  # wait for the images of the run to load
                for shot in shots:
                    keep(take(editor, shot), shot.path)
    finally:
        if not options.url:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
