#!/usr/bin/env python3
"""Write the example graphs in workflows/, for the editor and in API format in workflows/api/, and the blueprints in subgraphs/.

    .host/venv/bin/python scripts/make_graphs.py            # write them
    .host/venv/bin/python scripts/make_graphs.py --check    # fail when they are stale or name what is not there

The graphs are described in example_graphs.py and its like, by names. A running host says which inputs are widgets, in which order, and
of what type each wire is; without --url one is started. `make host` provides it.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts import blueprints
from scripts.edit_graphs import edit_graphs
from scripts.example_graphs import Graph, Node, Note, Wire, graphs
from scripts.film_graphs import film_graphs
from scripts.graph_schema import GraphError, Info, Schema
from scripts.segment_graphs import segment_graphs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
PACK = "comfyui-goca"
MUTED = 2  # the editor's number for a node that is skipped, with everything after it
# Pixels of the editor.
TITLE, ROW, WIDGET, TEXT, GAP, MARGIN = 30, 20, 24, 84, 36, 90


# -- the two formats -------------------------------------------------------------------------------------------------


def to_api(graph: Graph, schema: Schema, muted: bool = False) -> dict[str, Any]:
    """What the editor would queue: without muted nodes, unless `muted`."""
    ids, prompt = _ids(graph), {}
    for node in graph.nodes():
        if node.muted and not muted:
            continue
        inputs: dict[str, Any] = {}
        for name in schema.inputs(node):
            given = node.inputs.get(name)
            if isinstance(given, Wire):
                inputs[name] = [str(ids[id(given.node)]), schema.slot(given)[0]]
            elif name in schema.widgets(node):
                inputs[name] = schema.value(node, name)
        # Some nodes of the host have no name but their own.
        title = node.title or schema.of(node)["display_name"] or node.type
        prompt[str(ids[id(node)])] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}
    return prompt


def to_editor(graph: Graph, schema: Schema) -> dict[str, Any]:
    """The graph as the editor saves it (version 0.4)."""
    ids = _ids(graph)
    places, frames = _layout(graph, schema)
    # [number, from, its output, to, its input, type]
    links: list[list[Any]] = []
    saved: list[dict[str, Any]] = []
    for order, member in enumerate(graph.members()):
        place = places[id(member)]
        base = {"id": ids[id(member)], "pos": place[:2], "size": place[2:], "flags": {}, "order": order}
        if isinstance(member, Note):
            colours = {"color": "#432", "bgcolor": "#653"}
            note = {"type": "MarkdownNote", "mode": 0, "inputs": [], "outputs": [], "title": member.title}
            saved.append({**base, **note, "properties": {}, "widgets_values": [member.text], **colours})
            continue
        inputs = []
        ordered = [
            *schema.sockets(member).items(),
            *((name, kind) for name, (kind, _) in schema.widgets(member).items()),
        ]
        for slot, (name, kind) in enumerate(ordered):
            given = member.inputs.get(name)
            link = None
            if isinstance(given, Wire):
                output, kind_given = schema.slot(given)
                link = len(links) + 1
                links.append([link, ids[id(given.node)], output, ids[id(member)], slot, kind_given])
            entry = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": link}
            inputs.append({**entry, "widget": {"name": name}} if name in schema.widgets(member) else entry)
        values: list[Any] = []
        for name, (_, options) in schema.widgets(member).items():
            values.append(schema.value(member, name))
            if options.get("control_after_generate"):
                values.append("fixed")  # the editor's own widget: what happens to the number after a run
        ours = member.type.startswith("GOCA_")
        properties = {"Node name for S&R": member.type, "cnr_id": PACK if ours else "comfy-core", **member.properties}
        node: dict[str, Any] = {"type": member.type, "mode": MUTED if member.muted else 0, "inputs": inputs}
        node |= {"outputs": [], "properties": properties, "widgets_values": values}
        saved.append({**base, **node, **({"title": member.title} if member.title else {})})
    nodes = graph.nodes()
    by_id = {entry["id"]: entry for entry in saved}
    for node_ in nodes:
        info = schema.of(node_)
        own = ids[id(node_)]
        for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
            used = [link[0] for link in links if link[1] == own and link[2] == slot]
            by_id[own]["outputs"].append({"name": name, "type": kind, "links": used or None})
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK}/{graph.name}")),
        "revision": 0,
        "last_node_id": len(saved),
        "last_link_id": len(links),
        "nodes": saved,
        "links": links,
        "groups": frames,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [150, 190]}},
        "version": 0.4,
    }


def _ids(graph: Graph) -> dict[int, int]:
    return {id(member): number for number, member in enumerate(graph.members(), start=1)}


def _size(member: Node | Note, schema: Schema) -> tuple[int, int]:
    if isinstance(member, Note):
        return member.width, member.height
    rows = max(len(schema.sockets(member)), len(schema.of(member)["output"]))
    height = ROW * rows + 16 + member.more
    for _, options in schema.widgets(member).values():
        height += TEXT if options.get("multiline") else WIDGET
        height += WIDGET if options.get("control_after_generate") else 0
    return member.width, height


def _layout(graph: Graph, schema: Schema) -> tuple[dict[int, list[int]], list[dict[str, Any]]]:
    """[x, y, width, height] of every member, and the frames around the bands that have a title."""
    places: dict[int, list[int]] = {}
    frames: list[dict[str, Any]] = []
    top = 0
    for title, columns in graph.bands:
        x, bottom, left = 0, top, 0
        for column in columns:
            y, widest = top, 0
            for member in column:
                width, height = _size(member, schema)
                places[id(member)] = [x, y, width, height]
                y += height + TITLE + GAP
                widest = max(widest, width)
            bottom = max(bottom, y - TITLE - GAP)
            x += widest + 2 * GAP
            if all(isinstance(member, Note) for member in column):
                x += GAP
                left = x  # notes stand before the frame
        if title:
            box = [left - GAP, top - TITLE - 2 * GAP, x - left, bottom - top + TITLE + 3 * GAP]
            frames.append({"id": len(frames) + 1, "title": title, "bounding": box, "color": "#3f789e", "flags": {}})
        top = bottom + TITLE + MARGIN + GAP
    return places, frames


def files(info: Info) -> dict[Path, str]:
    """Every file and what should be in it. Raises GraphError."""
    schema, texts = Schema(info), {}
    for graph in [*graphs(), *segment_graphs(), *edit_graphs(), *film_graphs()]:
        for node in graph.nodes():
            schema.check(node)
        texts[FOLDER / f"{graph.name}.json"] = _json(to_editor(graph, schema))
        texts[FOLDER / "api" / f"{graph.name}.json"] = _json(to_api(graph, schema))
    for name, saved in blueprints.files(schema, to_editor).items():
        texts[ROOT / "subgraphs" / f"{name}.json"] = _json(saved)
    return texts


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def stale(texts: dict[Path, str]) -> list[Path]:
    return [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def object_info(url: str | None) -> Info:
    if url:
        with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
            found: Info = json.load(answer)
        return found
    from scripts.comfy_server import ComfyServer

    with ComfyServer() as server:
        return server.object_info()


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the example graphs, or check that they are up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    parser.add_argument("--url", help="a running ComfyUI that has the pack (else one is started)")
    options = parser.parse_args()
    try:
        texts = files(object_info(options.url))
    except GraphError as error:
        print(f"make_graphs: {error}", file=sys.stderr)
        return 1
    changed = stale(texts)
    if options.check:
        for path in changed:
            print(f"make_graphs: {path.relative_to(ROOT)} is stale; run scripts/make_graphs.py", file=sys.stderr)
        return 1 if changed else 0
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
