"""Where the nodes of a graph go: in columns, each to the right of what it needs, and no wire runs under a node.

A wire that spans several columns gets a lane of its own in those between, which no node enters. Where its curve would
leave the lane, the wire is pinned there by reroutes; the wires of one output share them. Which nodes share a column, and
in which order, is searched for: few crossings and steep wires, and a graph that is as large as possible when it opens.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

TITLE = 30  # pixels: height of a node's title bar, which is above its position
APART, LANE = 36, 26  # pixels: between two nodes of a column, around a lane
GAP = 52  # pixels: between two columns, at least
MARGIN, GROUP_TITLE = 30, 50  # pixels: between a group and its nodes
WINDOW = (1600, 1000)  # pixels: what the editor shows graphs in, of which it fills FILLS
FILLS = 0.75

Point = tuple[float, float]
Net = tuple[Any, int]  # an output: node and slot
Item = tuple[str, Any]  # ("node", its id), or ("lane", a Net)


@dataclass(frozen=True)
class Node:
    """A node as the editor measures it. Its ports are relative to its position."""

    key: Any
    width: float
    height: float  # without title bar; it is not collapsed
    inputs: tuple[Point, ...]
    outputs: tuple[Point, ...]
    group: int | None = None
    note: bool = False


@dataclass(frozen=True)
class Wire:
    key: int
    net: Net
    target: Any
    slot: int


@dataclass
class Plan:
    """Columns of items, from top to bottom."""

    column: dict[Any, int]
    order: list[list[Item]]


class Arrangement:
    """Searches for the best plan of one graph, and draws it."""

    def __init__(self, nodes: list[Node], wires: list[Wire], above: float = 0) -> None:
        """`above`: the height of what goes above the graph."""
        self.above = above
        self.nodes = {node.key: node for node in nodes}
        self.wires = wires
        self.nets: dict[Net, list[Wire]] = defaultdict(list)
        for wire in wires:
            self.nets[wire.net].append(wire)
        self.before: dict[Any, set[Any]] = {key: set() for key in self.nodes}
        self.after: dict[Any, set[Any]] = {key: set() for key in self.nodes}
        for wire in wires:
            self.before[wire.target].add(wire.net[0])
            self.after[wire.net[0]].add(wire.target)

    # -- plans ---------------------------------------------------------------------------------------------------------

    def first_plan(self) -> Plan:
        depth: dict[Any, int] = {}

        def place(key: Any) -> int:
            if key not in depth:
                depth[key] = max((place(other) + 1 for other in self.before[key]), default=0)
            return depth[key]

        for key in self.nodes:
            place(key)
        # What nothing comes before goes as close to what it is for as possible.
        for key in sorted(depth, key=lambda key: -depth[key]):
            if not self.before[key] and self.after[key]:
                depth[key] = min(depth[other] for other in self.after[key]) - 1
        plan = Plan(depth, [])
        rank: dict[Item, float] = {("node", key): place for place, key in enumerate(self.nodes)}
        for net, wires in self.nets.items():
            middle = sum(rank["node", wire.target] for wire in wires) / len(wires)
            rank |= {("lane", (net, column)): middle for column in range(len(self.nodes))}
        self.lay_lanes(plan, rank)
        return plan

    def lay_lanes(self, plan: Plan, rank: dict[Item, float]) -> None:
        """Fill the columns: with their nodes, and with a lane for each net that passes through. `rank`: their old places."""
        order: list[list[Item]] = [[] for _ in range(max(plan.column.values()) + 1)]
        for key, column in plan.column.items():
            order[column].append(("node", key))
        for net, wires in self.nets.items():
            for column in range(plan.column[net[0]] + 1, max(plan.column[wire.target] for wire in wires)):
                order[column].append(("lane", (net, column)))
        plan.order = [sorted(items, key=lambda item: rank.get(item, 0.5)) for items in order]

    def changed(self, plan: Plan, dice: random.Random) -> Plan | None:
        """A plan that differs in one place."""
        if dice.random() < 0.75:
            order = [list(items) for items in plan.order]
            column = dice.choice([items for items in order if len(items) > 1] or [order[0]])
            if len(column) < 2:
                return None
            item = column.pop(dice.randrange(len(column)))
            column.insert(dice.randrange(len(column) + 1), item)
            return Plan(plan.column, order)
        key = dice.choice([key for key, node in self.nodes.items() if not node.note])
        low = max((plan.column[other] + 1 for other in self.before[key]), default=0)
        high = min((plan.column[other] - 1 for other in self.after[key]), default=max(plan.column.values()))
        if high <= low:
            return None
        changed = Plan({**plan.column, key: dice.randint(low, high)}, [])
        rank = {item: (place + 0.5) / len(items) for items in plan.order for place, item in enumerate(items)}
        rank |= {("node", key): dice.random()}
        rank |= {
            ("lane", (net, column)): dice.random()
            for net in self.nets
            for column in range(len(plan.order))
            if ("lane", (net, column)) not in rank
        }
        self.lay_lanes(changed, rank)
        return changed

    # -- heights -------------------------------------------------------------------------------------------------------

    def steps(self, plan: Plan) -> list[tuple[Item, float, Item, float, float]]:
        """From column to column: item, height of the port in it, the same of the next item, and the weight."""
        found = []
        for net, wires in self.nets.items():
            start = self.nodes[net[0]].outputs[net[1]][1]
            last = max(plan.column[wire.target] for wire in wires)
            path: list[tuple[Item, float]] = [(("node", net[0]), start)]
            path += [(("lane", (net, column)), 0.0) for column in range(plan.column[net[0]] + 1, last)]
            found += [(*a, *b, 2.0) for a, b in itertools.pairwise(path)]
            for wire in wires:
                end = self.nodes[wire.target].inputs[wire.slot][1]
                item, height = path[plan.column[wire.target] - plan.column[net[0]] - 1]
                found.append((item, height, ("node", wire.target), end, 1.0))
        return found

    def extent(self, item: Item) -> tuple[float, float]:
        """Above and below an item's position."""
        if item[0] == "lane":
            return LANE / 2, LANE / 2
        return TITLE + APART / 2, self.nodes[item[1]].height + APART / 2

    def group_of(self, item: Item) -> int | None:
        if item[0] == "node":
            return self.nodes[item[1]].group
        groups = {self.nodes[wire.target].group for wire in self.nets[item[1][0]]}
        return groups.pop() if len(groups) == 1 else None

    def heights(self, plan: Plan, rounds: int = 8) -> dict[Item, float]:
        """Positions at which wires are as level as possible and nothing overlaps."""
        steps = self.steps(plan)
        near: dict[Item, list[tuple[Item, float, float]]] = defaultdict(list)
        for a, at_a, b, at_b, weight in steps:
            near[a].append((b, at_b - at_a, weight))
            near[b].append((a, at_a - at_b, weight))
        apart = []
        for items in plan.order:
            total = 0.0
            places: list[float] = []
            for place, item in enumerate(items):
                above, below = self.extent(item)
                if place and self.group_of(item) != self.group_of(items[place - 1]):
                    total += 2 * MARGIN + GROUP_TITLE
                total += above
                places.append(total)
                total += below
            apart.append(places)
        y = {
            item: at - places[-1] / 2
            for items, places in zip(plan.order, apart, strict=True)
            for item, at in zip(items, places, strict=True)
        }
        columns = list(range(len(plan.order)))
        for turn in range(rounds):
            for column in columns if turn % 2 == 0 else reversed(columns):
                items = plan.order[column]
                wanted: list[float] = []
                weights: list[float] = []
                for item, offset in zip(items, apart[column], strict=True):
                    total = sum(weight for _, _, weight in near[item])
                    middle = sum(weight * (y[other] + shift) for other, shift, weight in near[item])
                    wanted.append((middle / total if total else y[item]) - offset)
                    weights.append(total or 0.01)
                for item, offset, at in zip(items, apart[column], level(wanted, weights), strict=True):
                    y[item] = offset + at
        return y

    def cost(self, plan: Plan) -> float:
        y = self.heights(plan)
        steps = [(plan_column(plan, a), y[a] + at_a, y[b] + at_b, w) for a, at_a, b, at_b, w in self.steps(plan)]
        steep = sum(weight * min(abs(y1 - y0), 600) for _, y0, y1, weight in steps)
        crossings = 0
        for place, (column, y0, y1, _) in enumerate(steps):
            crossings += sum(1 for other, z0, z1, _ in steps[:place] if other == column and (y0 - z0) * (y1 - z1) < 0)
        widths = [
            max((self.nodes[key].width for kind, key in items if kind == "node"), default=0) for items in plan.order
        ]
        width = sum(widths) + 1.2 * GAP * len(widths)
        edges = [
            (y[item] - self.extent(item)[0], y[item] + self.extent(item)[1]) for items in plan.order for item in items
        ]
        height = self.above + max(bottom for _, bottom in edges) - min(top for top, _ in edges)
        zoom = FILLS * min(WINDOW[0] / width, WINDOW[1] / height, 1.2)
        lanes = sum(item[0] == "lane" for items in plan.order for item in items)
        return steep + 250 * crossings + 60 * lanes + 8000 / zoom + self.outside(plan, y)

    def outside(self, plan: Plan, y: dict[Item, float]) -> float:
        """What it costs that a node is in a group that is not its own."""
        cost = 0.0
        for group in {node.group for node in self.nodes.values() if node.group is not None}:
            of = [
                (column, item)
                for column, items in enumerate(plan.order)
                for item in items
                if self.group_of(item) == group
            ]
            left, right = min(column for column, _ in of), max(column for column, _ in of)
            top = min(y[item] - self.extent(item)[0] for _, item in of) - GROUP_TITLE
            bottom = max(y[item] + self.extent(item)[1] for _, item in of)
            for column in range(left, right + 1):
                for item in plan.order[column]:
                    above, below = self.extent(item)
                    if self.group_of(item) != group and y[item] - above < bottom and y[item] + below > top:
                        cost += 2000
        return cost

    def search(self, tries: int, seed: int = 0) -> Plan:
        """The best plan of simulated annealing."""
        dice = random.Random(seed)
        plan = self.first_plan()
        cost = self.cost(plan)
        best, least = plan, cost
        for turn in range(tries):
            other = self.changed(plan, dice)
            if other is None:
                continue
            heat = 1500 * (1 - turn / tries) ** 2 + 1
            found = self.cost(other)
            if found < cost or dice.random() < math.exp((cost - found) / heat):
                plan, cost = other, found
                if cost < least:
                    best, least = plan, cost
        return best


def plan_column(plan: Plan, item: Item) -> int:
    return plan.column[item[1]] if item[0] == "node" else item[1][1]


def level(wanted: list[float], weights: list[float]) -> list[float]:
    """The rising numbers that are closest to those wanted."""
    blocks: list[list[float]] = []  # mean, weight, count
    for value, weight in zip(wanted, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, weight, count = blocks.pop()
            mean, total, number = blocks[-1]
            blocks[-1] = [(mean * total + value * weight) / (total + weight), total + weight, number + count]
    return [mean for mean, _, count in blocks for _ in range(int(count))]
