#!/usr/bin/env python3
"""Make the template thumbnails that show before and after, by running the graphs. scripts/demo_card.py makes the others.

.host/venv/bin/python scripts/make_thumbnails.py      # with --url, use a running ComfyUI instead of starting one
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts import demo
from scripts.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
SIDE, GAP = 196, 8  # side of one image in pixels, and the gap between two

# Graph -> titles of the nodes whose images are used. The same graph for other models gets the same thumbnail.
SHOWN = {
    "regional_prompts_demo": ("First picture", "Second picture"),
    "regional_one_pass_demo": ("Plain picture", "Picture"),
    "masks_into_other_nodes_demo": ("First picture", "Second picture"),
    "replace_by_word_demo": ("First picture", "Second picture"),
    "semantic_cfg_demo": ("Plain guidance", "GoCA's regions"),
}


def thumbnail(server: ComfyServer, name: str) -> bytes:
    """The first image of each node, side by side, as JPEG."""
    from PIL import Image

    prompt = demo.load_graph(WORKFLOWS / "api" / f"{name}.json")
    outputs = server.run(prompt).outputs
    by_title = {demo.title(node): outputs[key] for key, node in prompt.items() if "images" in outputs.get(key, {})}
    sheet = Image.new("RGB", ((SIDE + GAP) * len(SHOWN[name]) - GAP, SIDE), "white")
    for place, title in enumerate(SHOWN[name]):
        with Image.open(io.BytesIO(server.fetch(by_title[title]["images"][0]))) as picture:
            sheet.paste(
                picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (place * (SIDE + GAP), 0)
            )
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=88)
    return content.getvalue()


@contextlib.contextmanager
def server_at(url: str | None) -> Iterator[ComfyServer]:
    if url is None:
        with ComfyServer() as server:
            yield server
        return
    server = ComfyServer()
    server.port = int(url.rsplit(":", 1)[1])
    yield server


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the template thumbnails that show before and after.")
    parser.add_argument(
        "--url", help="address of a running ComfyUI with this pack, on this machine (default: start one)"
    )
    with server_at(parser.parse_args().url) as server:
        for name in SHOWN:
            content = thumbnail(server, name)
            for graph in sorted(WORKFLOWS.glob(f"{name.removesuffix('demo')}*.json")):
                graph.with_suffix(".jpg").write_bytes(content)
                print(f"workflows/{graph.stem}.jpg: {len(content) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
