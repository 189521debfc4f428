"""Where a graph has its nodes, groups and wires, as the editor draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .editor import Editor

POINTS = 60  # along a piece of a wire
TRIES = 40  # the newer renderer draws no wires until it has measured its nodes
FIT = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
# The canvas is drawn once, with paths that remember what was drawn along them. A wire is a curve, or one to each reroute; of
# one that several wires pass, each has a part.
READ = """() => {
  const { graph, canvas } = window.app;
  const title = window.LiteGraph.NODE_TITLE_HEIGHT;
  const Path = window.Path2D;
  window.Path2D = class extends Path {
    drawn = [];
    moveTo(...point) { this.drawn.push(point); super.moveTo(...point); }
    bezierCurveTo(...points) { this.drawn.push(points); super.bezierCurveTo(...points); }
  };
  try {
    canvas.draw(true, true);
  } finally {
    window.Path2D = Path;
  }
  const pieces = [...canvas.renderedPaths].flatMap(({ id, linkIds, path }) =>
    [...(linkIds ?? [id])].map((wire) => [wire, path.drawn.slice(0, 2).flat()]));
  const wires = [...graph.links.values()].map(({ id, origin_id: from, target_id: to }) =>
    ({ from, to, pieces: pieces.filter(([wire]) => wire === id).map(([, points]) => points) }));
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
        for _ in range(TRIES):
            found = editor.page.evaluate(READ)
            if all(wire["pieces"] for wire in found["wires"]):
                break
            editor.page.wait_for_timeout(250)
        else:
            raise AssertionError("A wire is not on the page, or the editor draws wires otherwise.")
        nodes = {node["id"]: (node["title"], node["box"]) for node in found["nodes"]}
        return Layout(nodes, found["titles"], found["wires"], found["scale"])

    def name(self, wire: dict[str, Any]) -> str:
        return f"{self.nodes[wire['from']][0]} to {self.nodes[wire['to']][0]}"

    def backward(self) -> list[str]:
        """Wires that somewhere end left of where they start."""
        return [self.name(wire) for wire in self.wires if any(piece[-2] <= piece[0] for piece in wire["pieces"])]

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
    """Whether a wire runs through a box."""
    for x0, y0, x1, y1, x2, y2, x3, y3 in wire["pieces"]:
        for step in range(POINTS + 1):
            t = step / POINTS
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            x, y = a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3
            if box[0] < x < box[2] and box[1] < y < box[3]:
                return True
    return False
