"""The subgraph that the node library of the editor offers: masks from words, for any picture, as one node."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from scripts.example_graphs import LOOK, SAID, Graph, Node
from scripts.graph_schema import Schema

NAME = "Masks from words"
ABOUT = (
    "Finds words of a prompt in a picture or photo and makes a mask for each: name in the prompt what is in the picture, and "
    "in the phrases, one per line, what to cut out."
)
INSIDE, OUTSIDE = -10, -20  # the editor's numbers for the inputs and the outputs of a subgraph
# Makes the saved form of a graph; scripts/make_graphs.py has it.
ToEditor = Callable[[Graph, Schema], dict[str, Any]]


def files(schema: Schema, to_editor: ToEditor) -> dict[str, dict[str, Any]]:
    """Each blueprint by its name."""
    prompt = Node("GOCA_EncodePrompt", {"text": ""}, "Prompt", more=150)
    latent = Node("VAEEncode", {})
    segment = Node("GOCA_SegmentImage", {"latent": latent[0], "positive": prompt[0]}, more=SAID)
    masks = Node("GOCA_MaskFromTokens", {"source": segment[0], "phrases": ""}, width=330, more=LOOK)
    graph = Graph(NAME, [("", [[prompt, latent], [segment], [masks]])])
    inputs = [
        ("image", latent, "pixels"),
        ("model", segment, "model"),
        ("clip", prompt, "clip"),
        ("vae", latent, "vae"),
        ("prompt", prompt, "text"),
        ("phrases", masks, "phrases"),
        ("theta", masks, "theta"),
    ]
    outputs = [(name, masks, name) for name in ("masks", "background", "labels")] + [
        ("attention", segment, "attention")
    ]
    return {NAME: _blueprint(to_editor(graph, schema), graph, inputs, outputs)}


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-goca/subgraphs/{name}"))


def _blueprint(
    inner: dict[str, Any], graph: Graph, inputs: list[tuple[str, Node, str]], outputs: list[tuple[str, Node, str]]
) -> dict[str, Any]:
    """A saved graph as the only node of another one, with these inputs and outputs."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in inner["links"]]
    saved = {id(node): entry for node, entry in zip(graph.members(), inner["nodes"], strict=True)}
    ports: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    outer: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    values: list[Any] = []

    def connect(kind: str, name: str, entry: dict[str, Any], link: dict[str, Any]) -> None:
        number = len(links) + 1
        links.append({"id": number, **link, "type": entry["type"]})
        port = {"id": _id(f"{graph.name}/{kind}/{name}"), "name": name, "type": entry["type"], "linkIds": [number]}
        ports[kind].append(port)
        if kind == "inputs":
            entry["link"] = number
            widget = {"widget": {"name": name}} if "widget" in entry else {}
            outer[kind].append({"name": name, "type": entry["type"], **widget, "link": None})
        else:
            entry["links"] = [*(entry["links"] or []), number]
            outer[kind].append({"name": name, "type": entry["type"], "links": None})

    for place, (name, node, own) in enumerate(inputs):
        names = [entry["name"] for entry in saved[id(node)]["inputs"]]
        slot = names.index(own)
        entry = saved[id(node)]["inputs"][slot]
        if "widget" in entry:
            widgets = [other["name"] for other in saved[id(node)]["inputs"] if "widget" in other]
            values.append(saved[id(node)]["widgets_values"][widgets.index(own)])
        ends = {"origin_id": INSIDE, "origin_slot": place, "target_id": saved[id(node)]["id"], "target_slot": slot}
        connect("inputs", name, entry, ends)
    for place, (name, node, own) in enumerate(outputs):
        slot = [entry["name"] for entry in saved[id(node)]["outputs"]].index(own)
        ends = {"origin_id": saved[id(node)]["id"], "origin_slot": slot, "target_id": OUTSIDE, "target_slot": place}
        connect("outputs", name, saved[id(node)]["outputs"][slot], ends)

    right = max(node["pos"][0] + node["size"][0] for node in inner["nodes"])
    definition = {
        "id": _id(graph.name),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(inner["nodes"]), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": graph.name,
        "inputNode": {"id": INSIDE, "bounding": [-260, 0, 120, 20 * len(inputs) + 40]},
        "outputNode": {"id": OUTSIDE, "bounding": [right + 120, 0, 120, 20 * len(outputs) + 40]},
        **ports,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": inner["groups"],
        "links": links,
        "extra": {},
        "category": "GoCA",
        "description": ABOUT,
    }
    shown = [entry["name"] for entry in outer["inputs"] if "widget" in entry]
    instance = {
        "id": len(inner["nodes"]) + 1,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [340, 360],
        "flags": {},
        "order": 0,
        "mode": 0,
        **outer,
        "properties": {"proxyWidgets": [["-1", name] for name in shown]},
        "widgets_values": values,
        "title": graph.name,
    }
    return {
        "id": _id(f"{graph.name}/file"),
        "revision": 0,
        "last_node_id": instance["id"],
        "last_link_id": 0,
        "nodes": [instance],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }
