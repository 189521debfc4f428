"""What an earlier version saved still works: recordings, graphs of the editor, and prompts for the API.

The files in tests/fixtures/VERSION were made by that version, with scripts/make_compat_fixtures.py, and do not change.
Only node ids, their inputs and outputs, and saved files are used here, never what the pack's modules call things.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.comfy_server import ComfyServer, Prompt
from scripts.make_compat_fixtures import node_of
from tests.conftest import ROOT

from .device import ACCELERATED

FIXTURES = ROOT / "tests" / "fixtures"
VERSIONS = sorted(path.parent.name for path in FIXTURES.glob("*/nodes.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
CHOICE = "COMFY_DYNAMICCOMBO_V3"  # a widget that brings inputs of its own

pytestmark = pytest.mark.parametrize("version", VERSIONS)


def stored(version: str, name: str) -> Any:
    return json.loads((FIXTURES / version / name).read_text(encoding="utf-8"))


def stored_masks(version: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / version / "masks.npz") as masks:
        return dict(masks)


def copy_recording(version: str, name: str, inputs: Path) -> str:
    """Put a recording where Load Attention finds it; its name there."""
    target = inputs / "goca" / version / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FIXTURES / version / target.name, target)
    return f"input/{version}/{target.name}"


@pytest.fixture(scope="module")
def classes(host: SimpleNamespace, pack: ModuleType) -> dict[str, Any]:
    return {name: cls for name, cls in host.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("GOCA_")}


@pytest.fixture(scope="module")
def nodes(classes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The inputs and outputs of every node, as the fixtures hold them."""
    return {name: node_of(cls.GET_NODE_INFO_V1()) for name, cls in classes.items()}


def test_the_fixtures_are_there(version: str) -> None:
    assert "0.1.0" in VERSIONS
    assert sum(path.stat().st_size for path in (FIXTURES / version).iterdir()) < 300_000


# -- recordings -------------------------------------------------------------------------------------------------------


def test_recordings_give_the_same_masks(version: str, classes: dict[str, Any], host: SimpleNamespace) -> None:
    inputs, expected = Path(host.folder_paths.get_input_directory()), stored_masks(version)
    asked = stored(version, "masks.json")
    assert {entry["recording"] for entry in asked.values()} == {"demo", "video"}
    for name, entry in asked.items():
        file = copy_recording(version, entry["recording"], inputs)
        with torch.inference_mode():
            (attention,) = classes["GOCA_LoadAttention"].execute(file=file).result
            found = classes["GOCA_MaskFromTokens"].execute(source=attention, **entry["inputs"]).result
        masks, background, labels = found
        assert labels == entry["inputs"]["phrases"]
        # The last bit of a soft score depends on the CPU; a mask is 0 or 1.
        tolerance = 1e-6 if entry["inputs"]["mode"] == "soft" else 0
        for key, values in ((name, masks), (f"{name} background", background)):
            wanted = torch.from_numpy(expected[key]).float()
            assert 0 < wanted.mean() < 1, f"{key} tests nothing"
            torch.testing.assert_close(
                values, wanted, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


# -- the graph for the API --------------------------------------------------------------------------------------------


def by_type(prompt: Prompt, kind: str) -> str:
    (found,) = [key for key, node in prompt.items() if node["class_type"] == kind]
    return found


def served_masks(server: ComfyServer, prompt: Prompt, outputs: dict[str, dict[str, Any]]) -> np.ndarray:
    (shown,) = [key for key, node in prompt.items() if node["_meta"]["title"] == "Masks"]
    images = [Image.open(io.BytesIO(server.fetch(image))) for image in outputs[shown]["images"]]
    return np.stack([np.asarray(image)[..., 0] for image in images])


def test_the_graph_gives_the_same_masks(version: str, server: ComfyServer) -> None:
    prompt, wanted = stored(version, "graph_api.json"), stored_masks(version)["graph"]
    masks = served_masks(server, prompt, server.run(prompt).outputs)
    assert masks.shape == wanted.shape and set(np.unique(masks)) <= {0, 255}
    # Another CPU rounds differently in twenty steps of sampling, and a few pixels at an edge may then change sides.
    # A GPU computes in half precision.
    assert ((masks > 0) != wanted).mean() < (0.03 if ACCELERATED else 0.005)


def test_the_graph_gives_the_same_masks_of_a_recording(version: str, server: ComfyServer) -> None:
    """Load Attention takes the place of the sampler, so that there is nothing to round."""
    prompt = stored(version, "graph_api.json")
    entry = stored(version, "masks.json")["demo partition"]
    collect = prompt[by_type(prompt, "GOCA_CollectAttention")]
    file = copy_recording(version, "demo", server.base / "input")
    collect |= {"class_type": "GOCA_LoadAttention", "inputs": {"file": file}}
    prompt[by_type(prompt, "GOCA_MaskFromTokens")]["inputs"] |= entry["inputs"]
    wires = {
        key: {value[0] for value in node["inputs"].values() if isinstance(value, list)} for key, node in prompt.items()
    }
    wanted = {key for key, node in prompt.items() if node["_meta"]["title"] == "Masks"}
    while more := set().union(*(wires[key] for key in wanted)) - wanted:
        wanted |= more
    prompt = {key: node for key, node in prompt.items() if key in wanted}
    masks = served_masks(server, prompt, server.run(prompt).outputs)
    assert np.array_equal(masks, 255 * stored_masks(version)["demo partition"].astype(np.uint8))


# -- inputs and outputs -----------------------------------------------------------------------------------------------


def check_inputs(where: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    assert [entry["id"] for entry in new[: len(old)]] == [entry["id"] for entry in old], f"{where}: ids or their order"
    added = [entry["id"] for entry in new[len(old) :] if not entry["optional"]]
    assert not added, f"{where}: graphs that exist have no {added}"
    for before, now in zip(old, new[: len(old)], strict=True):
        check_input(f"{where}.{before['id']}", before, now)


def check_input(where: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert set(old["type"].split(",")) <= set(new["type"].split(",")), f"{where}: {new['type']} was {old['type']}"
    assert new["optional"] or not old["optional"], f"{where}: was optional"
    if old["optional"]:  # what is required is in every graph
        assert new.get("default") == old.get("default"), f"{where}: default"
    # After such a widget a saved graph holds one more value.
    assert bool(new.get("control_after_generate")) == bool(old.get("control_after_generate")), where
    if "min" in old:
        assert new["min"] <= old["min"] and old["max"] <= new["max"], f"{where}: range"
    if old["type"] == CHOICE:
        for key, brought in old["options"].items():
            found = new["options"][key]
            # The values of the widgets below come after these.
            assert len(found) == len(brought), f"{where}: {key} brings other inputs"
            check_inputs(f"{where}.{key}", brought, found)
    elif "options" in old:
        assert set(old["options"]) <= set(new["options"]), f"{where}: options"
        # Without a default the first option is chosen.
        assert "default" in old or new["options"][0] == old["options"][0], f"{where}: first option"


def test_inputs_and_outputs_are_kept(version: str, nodes: dict[str, dict[str, Any]]) -> None:
    old = stored(version, "nodes.json")
    assert set(old) <= set(nodes)
    assert version != "0.1.0" or len(old) == 17
    for name, node in old.items():
        check_inputs(name, node["inputs"], nodes[name]["inputs"])
        assert nodes[name]["outputs"][: len(node["outputs"])] == node["outputs"], f"{name}: outputs"


def loses(change: Callable[[list[dict[str, Any]]], Any]) -> Any:
    return pytest.param(change, id=change.__name__)


def drop(inputs: list[dict[str, Any]]) -> None:
    del inputs[3]


def swap(inputs: list[dict[str, Any]]) -> None:
    inputs[1:3] = inputs[2], inputs[1]


def rename(inputs: list[dict[str, Any]]) -> None:
    inputs[1]["id"] = "sentences"


def insert(inputs: list[dict[str, Any]]) -> None:
    inputs.insert(4, {"id": "more", "type": "INT", "optional": True, "default": 0})


def require(inputs: list[dict[str, Any]]) -> None:
    inputs.append({"id": "more", "type": "INT", "optional": False, "default": 0})


def lose_an_option(inputs: list[dict[str, Any]]) -> None:
    inputs[3]["options"].pop()


def change_a_default(inputs: list[dict[str, Any]]) -> None:
    next(entry for entry in inputs if entry["optional"] and "default" in entry)["default"] = 0.5


@pytest.mark.parametrize(
    "change", [loses(each) for each in (drop, swap, rename, insert, require, lose_an_option, change_a_default)]
)
def test_a_node_that_breaks_graphs_is_noticed(version: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    old, new = (stored(version, "nodes.json")["GOCA_MaskFromTokens"]["inputs"] for _ in range(2))
    check_inputs("same", old, new)
    change(new)
    with pytest.raises(AssertionError):
        check_inputs("changed", old, new)


# -- the graph of the editor ------------------------------------------------------------------------------------------


def widgets_of(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in inputs if entry["type"] in WIDGETS]


def check_value(where: str, value: Any, widget: dict[str, Any]) -> None:
    kinds: dict[str, Any] = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool}
    assert isinstance(value, kinds.get(widget["type"], str)), where
    if "min" in widget:
        assert widget["min"] <= value <= widget["max"], where
    assert value in widget.get("options", [value]), where


def test_values_in_the_editors_graph_fit_the_widgets(version: str, nodes: dict[str, dict[str, Any]]) -> None:
    """The editor gives the values of a saved graph to the widgets by their place."""
    prompt, checked = stored(version, "graph_api.json"), set()
    for node in stored(version, "graph.json")["nodes"]:
        if node["type"] not in nodes:
            continue
        widgets, values = widgets_of(nodes[node["type"]]["inputs"]), node["widgets_values"]
        assert CHOICE not in {widget["type"] for widget in widgets}, "choices are not in this graph"
        assert len(values) <= len(widgets), node["type"]
        wired = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        saved = prompt[str(node["id"])]["inputs"]
        for value, widget in zip(values, widgets, strict=False):
            check_value(f"{node['type']}.{widget['id']}", value, widget)
            if widget["id"] not in wired:
                assert saved[widget["id"]] == value, f"{node['type']}.{widget['id']}"
        known = {entry["id"] for entry in nodes[node["type"]]["inputs"]}
        assert wired | set(saved) <= known, node["type"]
        assert {entry["name"] for entry in node["inputs"]} <= known, node["type"]
        checked.add(node["type"])
    assert {"GOCA_EncodePrompt", "GOCA_RecordAttention", "GOCA_MaskFromTokens", "GOCA_Overlay"} <= checked
