"""The shipped graphs in the editor: they open whole, nothing jumps, they run to what the API gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scripts.comfy_server import ComfyServer, Run

from .editor import Editor

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
DEMO = "masks_from_words_demo"
BLUEPRINT = ROOT / "subgraphs" / "Masks from words.json"
OLD = ROOT / "tests" / "fixtures" / "graph_0_1.json"
# Nodes on which the pack shows something before they ran.
FACES = ("GOCA_EncodePrompt", "GOCA_MaskFromTokens", "GOCA_Overlay")
ROW = 24  # pixels of a widget in the classic renderer
WIDGETS = """() => Object.fromEntries(window.app.graph.nodes.map((node) =>
  [node.id, (node.widgets ?? []).filter((widget) => widget.serialize !== false).length]))"""
RENDERERS = pytest.mark.parametrize("editor", [False, True], ids=["classic", "vue"], indirect=True)


def saved_sizes(graph: dict[str, Any]) -> dict[str, list[int]]:
    return {str(n["id"]): [round(side) for side in n["size"]] for n in graph["nodes"] if n["type"] in FACES}


def missing(editor: Editor) -> list[str]:
    """Nodes that the editor does not know; that checkpoints are not there is no fault of a graph."""
    found: list[str] = editor.page.evaluate(
        "() => window.app.graph.nodes.filter((n) => !window.LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    )
    return found


def queued(editor: Editor) -> dict[str, Any]:
    """What the editor sends for its graph."""
    prompt: dict[str, Any] = editor.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    return prompt


def run_by_api(server: ComfyServer, prompt: dict[str, Any]) -> Run:
    # This thread has an event loop already, playwright's.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(server.run, prompt).result()


@RENDERERS
def test_every_shipped_graph_opens(editor: Editor) -> None:
    for path in GRAPHS:
        graph = json.loads(path.read_text(encoding="utf-8"))
        editor.load(path)
        assert not missing(editor), path.stem
        sizes = editor.sizes()
        assert {key: sizes[key] for key in saved_sizes(graph)} == saved_sizes(graph), f"nodes of {path.stem} grew"
        api = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        assert queued(editor) == api, f"{path.stem} is not sent as it was described"
        assert not editor.errors, path.stem


def test_the_template_browser_opens_a_graph_that_gives_what_the_api_gives(editor: Editor, server: ComfyServer) -> None:
    editor.template(DEMO)
    assert not missing(editor)
    before = editor.sizes()
    outputs = editor.run()
    assert editor.sizes() == before, "running a graph makes nodes grow"
    other = run_by_api(server, json.loads((ROOT / "workflows" / "api" / f"{DEMO}.json").read_text(encoding="utf-8")))
    assert outputs.keys() == other.outputs.keys()
    for node, shown in outputs.items():
        assert shown.get("goca_masks") == other.outputs[node].get("goca_masks")
        for ours, theirs in zip(shown.get("images", []), other.outputs[node].get("images", []), strict=True):
            # Nothing runs twice, so files may be the very same; their content is what counts.
            assert server.fetch(ours) == server.fetch(theirs)


@RENDERERS
def test_a_graph_of_the_first_version_opens_as_it_was_and_runs(editor: Editor) -> None:
    old = json.loads(OLD.read_text(encoding="utf-8"))
    editor.load(OLD)
    assert not missing(editor)
    sizes = editor.sizes()
    newer = editor.page.evaluate(WIDGETS)
    for node in old["nodes"]:
        if node["type"] in FACES:
            # What is shown takes no room of its own, only inputs that are newer than the graph do.
            more = newer[str(node["id"])] - len(node["widgets_values"])
            width, height = saved_sizes(old)[str(node["id"])]
            assert sizes[str(node["id"])] in ([width, height], [width, height + ROW * more]), node["type"]
    values = {str(node["id"]): node["widgets_values"] for node in editor.saved()["nodes"]}
    for node in old["nodes"]:
        count = len(node["widgets_values"])
        assert values[str(node["id"])][:count] == node["widgets_values"], node["type"]
    before = editor.sizes()
    outputs = editor.run()
    assert editor.sizes() == before
    (table,) = next(shown["goca_masks"] for shown in outputs.values() if "goca_masks" in shown)
    assert table["phrases"] == ["red circle", "blue square"]


def test_the_blueprint_is_one_node_that_makes_masks(editor: Editor, server: ComfyServer) -> None:
    """As the node library offers it: wired to a model and a picture, it needs no more than words."""
    offered = server.get_json("/global_subgraphs")
    (key,) = [key for key, entry in offered.items() if entry["name"] == BLUEPRINT.stem]
    editor.load(json.loads(server.get_json(f"/global_subgraphs/{key}")["data"]))
    assert not missing(editor)
    ((outer,),) = [editor.saved()["nodes"]]
    assert [entry["name"] for entry in outer["outputs"]] == ["masks", "background", "labels", "attention"]
    for name, value in (("prompt", "a red circle on grass"), ("phrases", "red circle")):
        set_ = "([name, value]) => { window.app.graph.nodes[0].widgets.find((w) => w.name === name).value = value; }"
        editor.page.evaluate(set_, [name, value])
    prompt = queued(editor)
    of = {node["class_type"]: key for key, node in prompt.items()}
    model, picture = "model", "picture"
    prompt[model] = {"class_type": "GOCA_DemoModel", "inputs": {}}
    colour = {"width": 64, "height": 64, "batch_size": 1, "color": 0xCC2200}
    prompt[picture] = {"class_type": "EmptyImage", "inputs": colour}
    prompt[of["GOCA_SegmentImage"]]["inputs"]["model"] = [model, 0]
    prompt[of["GOCA_EncodePrompt"]]["inputs"]["clip"] = [model, 1]
    prompt[of["VAEEncode"]]["inputs"] |= {"pixels": [picture, 0], "vae": [model, 2]}
    shown = {"image": [picture, 0], "source": [of["GOCA_MaskFromTokens"], 0], "labels": "", "opacity": 0.5}
    prompt["overlay"] = {"class_type": "GOCA_Overlay", "inputs": shown}
    outputs = run_by_api(server, prompt).outputs
    assert outputs[of["GOCA_MaskFromTokens"]]["goca_masks"][0]["phrases"] == ["red circle"]


def test_nothing_of_the_pack_runs_while_nothing_happens(editor: Editor) -> None:
    """As the browser's profiler sees it; how long opening nodes takes is for benchmarks/editor.py."""
    editor.demo()
    editor.page.mouse.move(5, 5)
    editor.settle()
    session = editor.page.context.new_cdp_session(editor.page)
    for command in ("Profiler.enable", "Profiler.start"):
        session.send(command)
    editor.page.wait_for_timeout(1500)
    nodes = session.send("Profiler.stop")["profile"]["nodes"]
    session.detach()
    assert nodes
    assert not [node["callFrame"] for node in nodes if "/extensions/comfyui-goca/" in node["callFrame"]["url"]]
