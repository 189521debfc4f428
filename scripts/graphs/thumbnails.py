#!/usr/bin/env python3
"""Make the thumbnails of the example graphs, which the template browser of the editor shows.

    .host/venv/bin/python scripts/graphs/thumbnails.py                          # all of them, a few minutes
    .host/venv/bin/python scripts/graphs/thumbnails.py "01 Masks from words"   # those whose names begin so

Graphs with the demo model are run, and the thumbnail shows what they made. Graphs for checkpoints cannot be run here; theirs
shows the graph itself, as it opens. Needs a Chromium and playwright, as tests/browser does.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

sys.path.append(str(Path(__file__).resolve().parents[2]))

from scripts.graphs.files import WORKFLOWS
from tests.browser.browser import open_editor
from tests.browser.editor import Editor

ROOT = Path(__file__).resolve().parents[2]
WIDTH, SIDE, GAP = 400, 196, 8  # pixels: of a screenshot, of one of two images, between them

# Which nodes' images the thumbnail shows, by their titles: one as it is, or two side by side. MASKS: what its viewer shows.
MASKS = "GOCA_MaskFromTokens"
SHOWN = {
    "Masks from words": (MASKS,),
    "Masks of a photo": ("Masks over the image",),
    "Sharper masks": ("As they are", "pamr"),
    "Replace an object": ("First image", "Second image"),
    "Regional prompts": ("First image", "Second image"),
    "Regional prompts in one pass": ("Plain image", "Image"),
    "Masks into other nodes": ("First image", "Second image"),
    "Semantic guidance": ("Plain guidance", "GoCA's regions"),
    "Every step": ("Heat maps",),
    "Two LoRAs": ("Plain image", "Image in one pass"),
}
# Below the buttons of the editor.
VIEW = {"x": 60, "y": 90, "width": 800, "height": 560}
MOVE_DOWN = "() => { const { canvas } = window.app; canvas.ds.offset[1] += 80; canvas.setDirty(true, true); }"


def images_of_run(editor: Editor, titles: tuple[str, ...]) -> Image:
    """Run the graph; the first image of each of the nodes."""
    from PIL import Image

    keys = {node["_meta"]["title"]: key for key, node in editor.prompt().items() if node["class_type"] != "KSampler"}
    outputs = editor.run()
    if titles == (MASKS,):
        return viewer(editor)
    contents = [editor.server.fetch(outputs[keys[title]]["images"][0]) for title in titles]
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    if len(images) == 1:
        return images[0]
    sheet = Image.new("RGB", ((SIDE + GAP) * len(images) - GAP, SIDE), "white")
    for place, image in enumerate(images):
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (place * (SIDE + GAP), 0))
    return sheet


def viewer(editor: Editor) -> Image:
    from PIL import Image

    canvas = editor.look_at(MASKS).query_selector("canvas")
    assert canvas is not None
    return Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")


def screenshot(editor: Editor) -> Image:
    from PIL import Image

    editor.page.evaluate(MOVE_DOWN)
    editor.page.wait_for_timeout(1000)  # the nodes are drawn one after the other
    clip: Any = VIEW
    return Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")


def pretend_models(editor: Editor) -> None:
    """Put empty files where the graphs expect their checkpoints, or the editor marks the loaders as broken."""
    for path in WORKFLOWS.glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for model in node["properties"].get("models", []):
                folder = editor.server.base / "models" / model["directory"]
                folder.mkdir(exist_ok=True)
                (folder / model["name"]).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the thumbnails of the example graphs.")
    parser.add_argument("names", nargs="*", default=[""], help="how the names of the graphs begin (default: all)")
    names = tuple(parser.parse_args().names)
    with open_editor(vue=True, width=1600, height=1000) as editor:
        pretend_models(editor)
        editor.open()
        for path in sorted(path for path in WORKFLOWS.glob("*.json") if path.name.startswith(names)):
            editor.load(path)
            titles = SHOWN.get(path.stem[3:].partition(" (")[0])
            image = images_of_run(editor, titles) if titles else screenshot(editor)
            image.thumbnail((WIDTH, WIDTH))
            target = path.with_suffix(".jpg")
            image.save(target, quality=88)
            print(f"workflows/{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
