"""The example graphs with the model of shapes, which samples several times as fast as that of things."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from scripts.graphs.files import graph_file

WORDS = {
    "fox": "yellow star",
    "blue umbrella": "yellow star",
    "mushroom": "purple heart",
    "red balloon": "blue square",
    "cat": "red circle",
    "dog": "yellow star",
    "blue car": "yellow circle",
    "red car": "red circle",
    "tree": "blue square",
    "sand": "grass",
}
DEMO, SEED = "GOCA_DemoModel", 3
# Its images have half the side: the inputs that count pixels.
PIXELS = {
    "EmptyLatentImage": ("width", "height"),
    "GrowMask": ("expand",),
    "ImageScale": ("width", "height"),
    "SolidMask": ("width", "height"),
    "EmptyImage": ("width", "height"),
    "ImageBlur": ("blur_radius", "sigma"),
    "GOCA_RegionalPrompt": ("feather",),
    "GOCA_RegionalPass": ("feather",),
}


def _changed(kind: str, name: str, value: Any) -> Any:
    if kind == DEMO:
        return "shapes"
    if isinstance(value, str) and name in ("text", "phrases", "prompts", "value"):
        for thing, shape in WORDS.items():
            value = re.sub(rf"\b{thing}\b", shape, value)
        return value
    if name in PIXELS.get(kind, ()):
        return type(value)(value / 2)
    return SEED if kind == "KSampler" and name == "seed" else value


def saved_with_shapes(title: str) -> dict[str, Any]:
    """The graph of this title as the editor saves it, with the model of shapes."""
    return of_shapes(json.loads(graph_file(title).read_text(encoding="utf-8")))


def shortened(graph: dict[str, Any], steps: int) -> dict[str, Any]:
    """The same graph, as the editor saves it, with fewer steps: they take most of its time."""
    for node in graph["nodes"]:
        if node["type"] == "KSampler":
            seed, control, _, *rest = node["widgets_values"]
            node["widgets_values"] = [seed, control, steps, *rest]
    return graph


def of_shapes(graph: dict[str, Any]) -> dict[str, Any]:
    """A copy of a graph, in API format or as the editor saves it, with the model of shapes and prompts of shapes.

    A graph without the model of things stays as it is.
    """
    graph = copy.deepcopy(graph)
    nodes = graph["nodes"] if "nodes" in graph else graph.values()
    kinds = [
        node.get("widgets_values", node["inputs"])
        for node in nodes
        if DEMO in (node.get("type"), node.get("class_type"))
    ]
    if kinds not in ([["things"]], [{"scenes": "things"}]):
        return graph
    if "nodes" not in graph:
        for node in graph.values():
            for name, value in node["inputs"].items():
                if not isinstance(value, list):
                    node["inputs"][name] = _changed(node["class_type"], name, value)
        return graph
    for node in graph["nodes"]:
        place = 0
        for entry in (entry for entry in node["inputs"] if "widget" in entry):
            node["widgets_values"][place] = _changed(node["type"], entry["name"], node["widgets_values"][place])
            # The editor saves after a seed what becomes of it.
            place += 2 if entry["name"] in ("seed", "noise_seed") else 1
    return graph
