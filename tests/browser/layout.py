"""Where a graph has its nodes, groups and wires, as the editor draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .editor import Editor

POINTS = 80  # along a wire
READ = """() => {
  const { graph, canvas } = window.app;
  const title = window.LiteGraph.NODE_TITLE_HEIGHT;
  const wires = [...graph.links.values()].map((link) => {
    const [from, to] = [graph.getNodeById(link.origin_id), graph.getNodeById(link.target_id)];
    return { from: from.id, to: to.id, start: [...from.getOutputPos(link.origin_slot)], end: [...to.getInputPos(link.target_slot)] };
  });
  return {
    nodes: graph.nodes.map(({ id, title: name, pos: [x, y], size: [width, height] }) =>
      ({ id, title: name, box: [x, y - title, x + width, y + height] })),
    titles: graph.groups.map((g) => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.titleHeight]),
    wires, scale: canvas.ds.scale,
  };
}"""


@dataclass(frozen=True)
class Layout:
    nodes: dict[Any, tuple[str, list[float]]]  # title and box: left, top, right, bottom
    titles: list[list[float]]  # of groups
    wires: list[dict[str, Any]]
    scale: float

    @staticmethod
    def of(editor: Editor) -> Layout:
        found = editor.page.evaluate(READ)
        nodes = {node["id"]: (node["title"], node["box"]) for node in found["nodes"]}
        return Layout(nodes, found["titles"], found["wires"], found["scale"])

    def name(self, wire: dict[str, Any]) -> str:
        return f"{self.nodes[wire['from']][0]} to {self.nodes[wire['to']][0]}"

    def backward(self) -> list[str]:
        """Wires that end left of where they start."""
        return [self.name(wire) for wire in self.wires if wire["end"][0] <= wire["start"][0]]

    def under_nodes(self) -> list[str]:
        return [
            f"{self.name(wire)}, under {title}"
            for wire in self.wires
            for key, (title, box) in self.nodes.items()
            if key not in (wire["from"], wire["to"]) and passes(wire, box)
        ]

    def under_titles(self) -> list[str]:
        return [self.name(wire) for wire in self.wires for box in self.titles if passes(wire, box)]

    def overlapping(self) -> list[str]:
        boxes = list(self.nodes.values())
        return [
            f"{title} and {other}"
            for i, (title, a) in enumerate(boxes)
            for other, b in boxes[:i]
            if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        ]


def passes(wire: dict[str, Any], box: list[float]) -> bool:
    """Whether a wire runs through a box. The editor draws a curve that starts and ends horizontally."""
    (x0, y0), (x3, y3) = wire["start"], wire["end"]
    reach = math.dist(wire["start"], wire["end"]) / 4
    for step in range(POINTS + 1):
        t = step / POINTS
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        x, y = a * x0 + b * (x0 + reach) + c * (x3 - reach) + d * x3, (a + b) * y0 + (c + d) * y3
        if box[0] < x < box[2] and box[1] < y < box[3]:
            return True
    return False
