"""The nodes of a workflow file with their links, with subgraphs opened: of the editor's format, or of the API's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Input(NamedTuple):
    """An input of a node: its name, its type (empty in the API's format), and the node and output that it is linked to."""

    name: str
    type: str
    source: str
    slot: int


class Node(NamedTuple):
    """A node: ``kind`` is its class, ``values`` are those of its widgets, ``mode`` the editor's (2 and 4 do not run)."""

    id: str
    kind: str
    values: tuple[Any, ...]
    mode: int
    inputs: tuple[Input, ...]


Graph = dict[str, Node]


def is_workflow(data: Any) -> bool:
    """Whether a JSON value is a workflow, of the editor's or the API's format."""
    return isinstance(data, dict) and (isinstance(data.get("nodes"), list) or _is_prompt(data))


def _is_prompt(data: Mapping[str, Any]) -> bool:
    return bool(data) and all(isinstance(node, dict) and "class_type" in node for node in data.values())


def flat(data: Mapping[str, Any]) -> Graph:
    """The nodes of a workflow by their ids."""
    if _is_prompt(data):
        return {name: _of_prompt(name, node) for name, node in data.items()}
    subgraphs = {part["id"]: part for part in (data.get("definitions") or {}).get("subgraphs", [])}
    return _Opened(subgraphs).graph(data)


def _of_prompt(name: str, node: Mapping[str, Any]) -> Node:
    links, values = [], []
    for key, value in node.get("inputs", {}).items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            links.append(Input(key, "", value[0], value[1]))
        else:
            values.append(value)
    return Node(name, node["class_type"], tuple(values), 0, tuple(links))


# A link: the node and the output that it comes from.
_End = tuple[str, int]


class _Opened:
    """Puts the nodes of subgraphs in place of the nodes that stand for them."""

    def __init__(self, subgraphs: Mapping[str, Any]) -> None:
        self._subgraphs = subgraphs
        self._found: Graph = {}
        # What an output of a node that stands for a subgraph is inside of it.
        self._inside: dict[_End, _End] = {}

    def graph(self, data: Mapping[str, Any]) -> Graph:
        self._open(data, "", {}, 0)
        return {
            name: node._replace(inputs=tuple(map(self._resolved, node.inputs))) for name, node in self._found.items()
        }

    def _open(self, data: Mapping[str, Any], prefix: str, outside: Mapping[int, _End], mode: int) -> None:
        """``outside``: the ends that the inputs of this subgraph are linked to."""
        links = {_field(link, "id", 0): link for link in data.get("links") or ()}
        inner, outer = ((data.get(name) or {}).get("id") for name in ("inputNode", "outputNode"))

        def end(link_id: Any) -> _End | None:
            link = links.get(link_id)
            if link is None:
                return None
            origin, slot = _field(link, "origin_id", 1), _field(link, "origin_slot", 2)
            return outside.get(slot) if inner is not None and origin == inner else (f"{prefix}{origin}", slot)

        for node in data.get("nodes") or ():
            own, kind = f"{prefix}{node['id']}", node["type"]
            own_mode = mode or node.get("mode", 0)
            ends = [(entry, end(entry.get("link"))) for entry in node.get("inputs") or ()]
            if kind in self._subgraphs and prefix.count(":") < 8:
                linked = {number: found for number, (_, found) in enumerate(ends) if found is not None}
                self._open(self._subgraphs[kind], f"{own}:", linked, own_mode)
                continue
            inputs = tuple(Input(entry["name"], str(entry.get("type", "")), *found) for entry, found in ends if found)
            values = node.get("widgets_values") or ()
            values = tuple(values.values() if isinstance(values, dict) else values)
            self._found[own] = Node(own, kind, values, own_mode, inputs)
        for link in links.values():
            if outer is not None and _field(link, "target_id", 3) == outer:
                found = end(_field(link, "id", 0))
                if found is not None:
                    self._inside[prefix[:-1], _field(link, "target_slot", 4)] = found

    def _resolved(self, entry: Input) -> Input:
        found, steps = (entry.source, entry.slot), 0
        while found in self._inside and steps < 16:
            found, steps = self._inside[found], steps + 1
        return entry._replace(source=found[0], slot=found[1])


def _field(link: Any, name: str, place: int) -> Any:
    return link[name] if isinstance(link, dict) else link[place]
