"""What a running host says about its nodes, and whether a described graph fits it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.example_graphs import Node, Wire

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GROUP = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings inputs of its own, named "choice.input"

Info = dict[str, Any]


class GraphError(Exception):
    """A description that does not fit the host."""


class Schema:
    """The inputs and outputs of the host's nodes, from its /object_info."""

    def __init__(self, info: Info) -> None:
        self.info = info

    def of(self, node: Node) -> Info:
        if node.type not in self.info:
            raise GraphError(f"The host has no node {node.type}.")
        found: Info = self.info[node.type]
        return found

    def inputs(self, node: Node) -> dict[str, tuple[Any, dict[str, Any]]]:
        """Type and options of every input, in order; those of a choice are the ones that its value brings."""
        found: dict[str, tuple[Any, dict[str, Any]]] = {}
        for name, kind, options in _entries(self.of(node)["input"]):
            found[name] = (kind, options)
            if kind == GROUP:
                choices = {choice["key"]: choice["inputs"] for choice in options["options"]}
                found[name] = (kind, {**options, "options": list(choices)})
                brought = choices.get(node.inputs.get(name, next(iter(choices))), {})
                found |= {f"{name}.{inner}": (k, o) for inner, k, o in _entries(brought)}
        return found

    def widgets(self, node: Node) -> dict[str, tuple[Any, dict[str, Any]]]:
        return {name: spec for name, spec in self.inputs(node).items() if _is_widget(*spec)}

    def sockets(self, node: Node) -> dict[str, str]:
        return {name: kind for name, (kind, options) in self.inputs(node).items() if not _is_widget(kind, options)}

    def slot(self, wire: Wire) -> tuple[int, str]:
        """Number and type of an output."""
        info = self.of(wire.node)
        names = [str(name).lower() for name in info["output_name"]]
        slot = wire.output if isinstance(wire.output, int) else -1
        if isinstance(wire.output, str) and wire.output.lower() in names:
            slot = names.index(wire.output.lower())
        if not 0 <= slot < len(names):
            raise GraphError(f"{wire.node.type} has no output {wire.output!r}, only {', '.join(names)}.")
        return slot, str(info["output"][slot])

    def value(self, node: Node, name: str) -> Any:
        """What a widget shows; a connected one shows its default."""
        kind, options = self.widgets(node)[name]
        value = node.inputs.get(name)
        if value is not None and not isinstance(value, Wire):
            return value
        choices = kind if isinstance(kind, list) else options.get("options") or [""]
        fallback = {"STRING": "", "INT": 0, "FLOAT": 0.0, "BOOLEAN": False}
        return options.get("default", choices[0] if isinstance(kind, list) else fallback.get(kind, choices[0]))

    def check(self, node: Node) -> None:
        """Raise GraphError for inputs that are not there, missing, of another type or out of range."""
        known = self.inputs(node)
        for name in node.inputs.keys() - known.keys():
            raise GraphError(f"{node.type} has no input {name!r}, only {', '.join(known)}.")
        for name, (kind, options) in known.items():
            value = node.inputs.get(name)
            if isinstance(value, Wire):
                given, wanted = self.slot(value)[1], "COMBO" if isinstance(kind, list) else str(kind)
                if "*" not in (given, wanted) and not set(given.split(",")) <= set(wanted.split(",")):
                    raise GraphError(f"{node.type}: {name} takes {wanted}, not {given} of {value.node.type}.")
            elif not _is_widget(kind, options):
                if name in self.of(node)["input"].get("required", {}):
                    raise GraphError(f"{node.type}: {name} is not connected.")
            else:
                self._check_value(node, name, kind, options)

    def _check_value(self, node: Node, name: str, kind: Any, options: dict[str, Any]) -> None:
        value = self.value(node, name)
        choices = kind if isinstance(kind, list) else options.get("options")
        if kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
            raise GraphError(f"{node.type}: {name} = {value} is out of range.")
        # Which files there are is the user's affair.
        is_file = str(value).endswith(".safetensors") or options.get("image_upload")
        if choices is not None and value not in choices and not is_file:
            raise GraphError(f"{node.type}: {name} = {value!r} is none of {', '.join(map(str, choices))}.")


def _entries(groups: Info) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of inputs as the host lists them."""
    for group in ("required", "optional"):
        for name, spec in groups.get(group, {}).items():
            yield name, spec[0], spec[1] if len(spec) > 1 else {}


def _is_widget(kind: Any, options: dict[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in (*WIDGETS, GROUP)) and not options.get("forceInput")
