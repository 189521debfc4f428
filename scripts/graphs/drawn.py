"""Draws a plan of a graph: where its nodes go, how wide the gaps between columns are, and which wires need reroutes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.graphs.layered import GAP, GROUP_TITLE, MARGIN, TITLE, Arrangement, Net, Plan, Point, Wire

WIDER, WIDEST = 16, 320  # pixels: by how much a gap grows, and the widest
CLEAR = 6  # pixels: from a wire to a node it has nothing to do with
BEND = 20  # pixels: how far a reroute reaches along a wire at most, as in the editor

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Drawing:
    nodes: dict[Any, Point]
    pins: dict[Net, dict[Any, list[Point]]] = field(default_factory=dict)  # of a net, for each target
    groups: dict[int, Box] = field(default_factory=dict)

    def move(self, right: float, down: float) -> None:
        def moved(point: Point) -> Point:
            return point[0] + right, point[1] + down

        self.nodes = {key: moved(point) for key, point in self.nodes.items()}
        self.pins = {
            net: {key: [moved(pin) for pin in pins] for key, pins in wires.items()} for net, wires in self.pins.items()
        }
        self.groups = {key: (*moved(box[:2]), *moved(box[2:])) for key, box in self.groups.items()}


def curve(points: list[Point], bends: list[Point]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The curves of a wire through its points, as the editor draws them: sampled x and y of each piece."""
    t = np.linspace(0, 1, 50)
    a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    for place, ((x0, y0), (x3, y3)) in enumerate(itertools.pairwise(points)):
        length = math.dist((x0, y0), (x3, y3))
        (ux, uy), (vx, vy) = bends[place], bends[place + 1]
        first = length / 4 if place == 0 else min(BEND, length / 4)
        last = length / 4 if place == len(points) - 2 else min(BEND, length / 4)
        yield (
            a * x0 + b * (x0 + first * ux) + c * (x3 - last * vx) + d * x3,
            a * y0 + b * (y0 + first * uy) + c * (y3 - last * vy) + d * y3,
        )


def bends(before: Point, here: Point, following: list[Point]) -> Point:
    """The direction of a wire at a reroute: half-way between those to its neighbours."""
    ahead = sum(math.atan2(y - here[1], x - here[0]) for x, y in following) / len(following)
    back = math.atan2(here[1] - before[1], here[0] - before[0])
    half = (back - ahead) / 2
    if abs(half) > math.pi / 2:
        half += math.pi
    return math.cos(back - half), math.sin(back - half)


class Drawer:
    """Draws a plan: the width of columns, and which lanes need reroutes."""

    def __init__(self, arrangement: Arrangement, plan: Plan) -> None:
        self.of, self.plan = arrangement, plan
        self.y = arrangement.heights(plan, 40)
        self.gaps = [float(GAP)] * len(plan.order)  # the last one is not used

    def draw(self) -> Drawing:
        while True:
            drawing = self.placed()
            narrow = {gap for wire in self.of.wires for gap in self.hits(drawing, wire)}
            narrow = {gap for gap in narrow if self.gaps[gap] < WIDEST}
            if not narrow:
                break
            for gap in narrow:
                self.gaps[gap] += WIDER
        for net in drawing.pins:
            self.unpin(drawing, net)
        return drawing

    def placed(self) -> Drawing:
        """With a reroute at both ends of every lane."""
        drawing = Drawing({})
        lanes: dict[tuple[Net, int], list[Point]] = {}
        self.ends: list[tuple[float, float]] = []
        x = 0.0
        for column, items in enumerate(self.plan.order):
            width = max((self.of.nodes[key].width for kind, key in items if kind == "node"), default=0)
            for item in items:
                kind, key = item
                if kind == "node":
                    # What is narrower than a note stands close to what it is for.
                    aside = width - self.of.nodes[key].width if column == 0 else 0
                    drawing.nodes[key] = (round(x + aside), round(self.y[item]))
                else:
                    lanes[key] = [(round(x), round(self.y[item])), (round(x + width), round(self.y[item]))]
            self.ends.append((x, x + width))
            x += width + self.gaps[column]
        for net, wires in self.of.nets.items():
            start = self.plan.column[net[0]] + 1
            drawing.pins[net] = {
                wire.key: [pin for column in range(start, self.plan.column[wire.target]) for pin in lanes[net, column]]
                for wire in wires
            }
        for group in {node.group for node in self.of.nodes.values() if node.group is not None}:
            boxes = [self.box(drawing, key) for key, node in self.of.nodes.items() if node.group == group]
            inside = [
                y
                for column, items in enumerate(self.plan.order)
                for item in items
                if item[0] == "lane" and self.of.group_of(item) == group
                for y in [self.y[item]]
                if min(box[0] for box in boxes) <= self.ends[column][0] <= max(box[2] for box in boxes)
            ]
            drawing.groups[group] = (
                min(box[0] for box in boxes) - MARGIN,
                min([box[1] for box in boxes] + inside) - GROUP_TITLE,
                max(box[2] for box in boxes) + MARGIN,
                max([box[3] for box in boxes] + inside) + MARGIN,
            )
        return drawing

    def box(self, drawing: Drawing, key: Any) -> Box:
        (x, y), node = drawing.nodes[key], self.of.nodes[key]
        return x, y - TITLE, x + node.width, y + node.height

    def points(self, drawing: Drawing, wire: Wire, at_edge: bool) -> list[Point]:
        """`at_edge`: the newer renderer of nodes has the ports there."""
        (source, slot), target = wire.net, wire.target
        (x0, y0), (x1, y1) = drawing.nodes[source], drawing.nodes[target]
        (a, b), (c, d) = self.of.nodes[source].outputs[slot], self.of.nodes[target].inputs[wire.slot]
        if at_edge:
            a, c = self.of.nodes[source].width, 0
        return [(x0 + a, y0 + b), *drawing.pins[wire.net][wire.key], (x1 + c, y1 + d)]

    def pieces(self, drawing: Drawing, wire: Wire, at_edge: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        points = self.points(drawing, wire, at_edge)
        others = [self.points(drawing, other, at_edge) for other in self.of.nets[wire.net]]
        directions: list[Point] = [(1.0, 0.0)]
        for place in range(1, len(points) - 1):
            here = points[place]
            following = [path[path.index(here) + 1] for path in others if here in path[1:-1]]
            directions.append(bends(points[place - 1], here, following))
        return curve(points, [*directions, (1.0, 0.0)])

    def hits(self, drawing: Drawing, wire: Wire) -> list[int]:
        """The gaps before or after nodes and titles that a wire runs under, and those in which it runs backwards."""
        found: list[int] = []
        boxes = [self.box(drawing, key) for key in self.of.nodes if key not in (wire.net[0], wire.target)]
        boxes += [
            (left + CLEAR, top, right - CLEAR, top + GROUP_TITLE - 16)
            for left, top, right, _ in drawing.groups.values()
        ]
        left, top, right, bottom = np.array(boxes).T[:, :, None]
        for x, y in (piece for at_edge in (False, True) for piece in self.pieces(drawing, wire, at_edge)):
            inside = (x > left - CLEAR) & (x < right + CLEAR) & (y > top - CLEAR) & (y < bottom + CLEAR)
            found += [self.gap_at((x[0] + x[-1]) / 2)] * int(inside.any(axis=1).sum())
        return found

    def gap_at(self, x: float) -> int:
        middles = [(a[1] + b[0]) / 2 for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return min(range(len(middles)), key=lambda place: abs(middles[place] - x))

    def unpin(self, drawing: Drawing, net: Net) -> None:
        """Leave out the reroutes without which no more wire runs under a node."""
        wires = self.of.nets[net]

        def try_without(gone: set[Point]) -> bool:
            old = drawing.pins[net]
            before = sum(len(self.hits(drawing, wire)) for wire in wires)
            drawing.pins[net] = {key: [pin for pin in pins if pin not in gone] for key, pins in old.items()}
            if sum(len(self.hits(drawing, wire)) for wire in wires) <= before:
                return True
            drawing.pins[net] = old
            return False

        every = sorted({pin for pins in drawing.pins[net].values() for pin in pins})
        if not try_without(set(every)):
            for pin in every:
                try_without({pin})
