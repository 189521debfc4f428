#!/usr/bin/env python3
"""Make the thumbnails of the graphs that edit pictures, by running those for the demo model on a real server.

    .host/venv/bin/python scripts/thumbnails.py

Each shows the pictures that its graph saves, side by side. A graph for another model, which is not at hand, gets that of its
sister for the demo model.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

from goca_core.picture import contact_sheet
from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt
from scripts.edit_graphs import edit_graphs

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
DEMO = "_demo"
SIDE = 400


def sheet(server: ComfyServer, prompt: Prompt) -> Image.Image:
    """What the graph saves, in the order of its nodes, with their titles."""
    run = server.run(prompt)
    saving = [name for name, node in prompt.items() if node["class_type"] == "SaveImage"]
    pictures = [Image.open(io.BytesIO(server.fetch(run.outputs[name]["images"][0]))) for name in saving]
    made = contact_sheet(pictures, [demo.title(prompt[name]) for name in saving], columns=len(saving), scale=3)
    made.thumbnail((SIDE, SIDE))
    return made


def main() -> None:
    names = [graph.name for graph in edit_graphs()]
    with ComfyServer() as server:
        for name in (name for name in names if name.endswith(DEMO)):
            made = sheet(server, demo.load_graph(FOLDER / "api" / f"{name}.json"))
            stem = name.removesuffix(DEMO)
            for sister in (other for other in names if other.startswith(f"{stem}_")):
                made.save(FOLDER / f"{sister}.jpg", quality=88)
                print(f"wrote workflows/{sister}.jpg")


if __name__ == "__main__":
    main()
