#!/usr/bin/env python3
"""Lay out the example graphs: from left to right in columns, and no wire runs under a node (see layered.py and drawn.py).

    .host/venv/bin/python scripts/graphs/arrange.py                       # all but the first, a few minutes
    .host/venv/bin/python scripts/graphs/arrange.py "05 Replace an"      # those whose names begin so

Run it after a graph got other nodes or wires; it gives the same again otherwise. The first graph, of eight nodes, is laid out by
hand. A note that is wider than WIDE goes above the graph, others into the first column. Needs a Chromium and playwright, as
tests/browser does.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from scripts.graphs.drawn import Drawer, Drawing
from scripts.graphs.export import read, write
from scripts.graphs.files import WORKFLOWS
from scripts.graphs.layered import APART, TITLE, Arrangement, Node, Wire
from scripts.graphs.thumbnails import pretend_models
from tests.browser.browser import open_editor
from tests.browser.editor import Editor

WIDE = 500  # pixels
TRIES = 6000  # of the search
BY_HAND = "01 "
# Where the editor has the ports of each node, relative to its position.
PORTS = """() => Object.fromEntries(window.app.graph.nodes.map((node) => {
  const relative = ([x, y]) => [x - node.pos[0], y - node.pos[1]];
  return [node.id, {
    inputs: (node.inputs ?? []).map((_, slot) => relative(node.getInputPos(slot))),
    outputs: (node.outputs ?? []).map((_, slot) => relative(node.getOutputPos(slot))),
  }];
}))"""


def group_of(graph: dict[str, Any], node: dict[str, Any]) -> int | None:
    for place, group in enumerate(graph["groups"]):
        left, top, width, height = group["bounding"]
        x, y = node["pos"]
        if left <= x <= left + width and top <= y <= top + height:
            return place
    return None


def drawn(graph: dict[str, Any], ports: dict[str, Any]) -> Drawing:
    """A graph without its banners, laid out."""
    nodes = []
    for node in sorted(graph["nodes"], key=lambda node: int(node["id"])):
        if not is_banner(node):
            inputs, outputs = (tuple((x, y) for x, y in ports[str(node["id"])][side]) for side in ("inputs", "outputs"))
            width, height = node["size"]
            lone = not inputs and not outputs
            nodes.append(Node(node["id"], width, height, inputs, outputs, group_of(graph, node), lone))
    wires = [Wire(key, (source, slot), target, at) for key, source, slot, target, at, _ in graph["links"]]
    above = sum(TITLE + node["size"][1] + APART for node in graph["nodes"] if is_banner(node))
    arrangement = Arrangement(nodes, wires, above)
    drawer = Drawer(arrangement, arrangement.search(TRIES))
    drawing = drawer.draw()
    boxes = [drawer.box(drawing, node.key) for node in nodes] + list(drawing.groups.values())
    drawing.move(-min(box[0] for box in boxes), -min(box[1] for box in boxes))
    return drawing


def is_banner(node: dict[str, Any]) -> bool:
    return bool(node["type"] == "MarkdownNote" and node["size"][0] > WIDE)


def put(graph: dict[str, Any], drawing: Drawing) -> None:
    """Write positions, groups and reroutes into a graph."""
    top = 0
    for node in graph["nodes"]:
        if is_banner(node):
            node["pos"] = [0, TITLE]
            top = TITLE + node["size"][1] + APART
    drawing.move(0, top)
    for node in graph["nodes"]:
        if not is_banner(node):
            node["pos"] = list(drawing.nodes[node["id"]])
    for place, (left, upper, right, lower) in drawing.groups.items():
        graph["groups"][place]["bounding"] = [left, upper, right - left, lower - upper]
    reroutes: list[dict[str, Any]] = []
    ends: list[dict[str, int]] = []
    for wires in drawing.pins.values():
        through: dict[tuple[float, float], list[int]] = defaultdict(list)
        for key, pins in wires.items():
            for pin in pins:
                through[pin].append(key)
        numbers: dict[tuple[float, float], int] = {}
        for pin in sorted(through):
            numbers[pin] = len(reroutes) + 1
            reroutes.append({"id": numbers[pin], "pos": list(pin), "linkIds": through[pin]})
            if len(numbers) > 1:
                reroutes[-1]["parentId"] = numbers[pin] - 1
        ends += [{"id": key, "parentId": numbers[pins[-1]]} for key, pins in wires.items() if pins]
    for name, content in (("reroutes", reroutes), ("linkExtensions", ends)):
        graph["extra"].pop(name, None)
        if content:
            graph["extra"][name] = content


def arrange(editor: Editor, path: Path) -> None:
    graph = read(path)
    put(graph, drawn(graph, editor.load(path).page.evaluate(PORTS)))
    write(path, graph)


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay out the example graphs.")
    parser.add_argument("names", nargs="*", default=[""], help="how the names of the graphs begin (default: all)")
    names = tuple(parser.parse_args().names)
    with open_editor() as editor:
        pretend_models(editor)
        editor.open()
        for path in sorted(path for path in WORKFLOWS.glob("*.json") if path.name.startswith(names)):
            if not path.name.startswith(BY_HAND):
                arrange(editor, path)
                print(f"workflows/{path.name}")


if __name__ == "__main__":
    main()
