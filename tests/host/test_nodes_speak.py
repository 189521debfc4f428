"""Every node of the pack explains itself: tooltips, a description, words to find it by."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

# What people search for, and the node that they need first. No other node has these words.
ALIASES = {
    **dict.fromkeys(
        ("mask from text", "text to mask", "prompt mask", "dog mask", "clipseg", "attention mask"),
        "GOCA_MaskFromTokens",
    ),
    **dict.fromkeys(("heatmap", "heat map"), "GOCA_Overlay"),
}


@pytest.fixture(scope="module")
def infos(host: SimpleNamespace, pack: ModuleType) -> dict[str, dict[str, Any]]:
    """What the front end is told about each node."""
    classes = host.nodes.NODE_CLASS_MAPPINGS
    found = {name: cls.GET_NODE_INFO_V1() for name, cls in classes.items() if name.startswith("GOCA_")}
    assert found, "the pack brought no nodes"
    return found


def silent_inputs(inputs: dict[str, Any]) -> list[str]:
    """Inputs without a tooltip, also those that a choice brings with it."""
    silent = []
    for group in (inputs.get("required", {}), inputs.get("optional", {})):
        for name, spec in group.items():
            options = spec[1] if len(spec) > 1 else {}
            if not str(options.get("tooltip") or "").strip():
                silent.append(name)
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                silent += [inner for choice in options["options"] for inner in silent_inputs(choice["inputs"])]
    return silent


def test_every_input_has_a_tooltip(infos: dict[str, dict[str, Any]]) -> None:
    assert not {name: silent for name, info in infos.items() if (silent := silent_inputs(info["input"]))}


def test_every_output_has_a_tooltip(infos: dict[str, dict[str, Any]]) -> None:
    silent = {}
    for name, info in infos.items():
        tooltips = info.get("output_tooltips") or [None] * len(info["output"])
        assert len(tooltips) == len(info["output"]), name
        if any(not str(tooltip or "").strip() for tooltip in tooltips):
            silent[name] = tooltips
    assert not silent


def test_every_node_has_a_description_and_a_display_name(infos: dict[str, dict[str, Any]]) -> None:
    for name, info in infos.items():
        assert len(info["description"]) > 20, name
        assert info["display_name"] and info["display_name"] != name, name
        assert info["category"].split("/")[0] == "GoCA", name


def test_every_node_can_be_found(infos: dict[str, dict[str, Any]]) -> None:
    aliases = {name: info.get("search_aliases") or [] for name, info in infos.items()}
    assert all(aliases.values())
    for words, node in ALIASES.items():
        assert [name for name, found in aliases.items() if words in found] == [node], words
