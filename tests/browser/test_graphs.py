"""The shipped graphs in the editor: they open whole, nothing jumps, they run to what the API gives."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from scripts.comfy_server import PACK, ComfyServer, Run

from .editor import Editor
from .layout import FIT, Layout
from .panels import RENDERERS, chips, hover, legend, pressed

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
MORE = sorted((ROOT / "workflows" / "more").glob("*.json"))
BLUEPRINT = ROOT / "subgraphs" / "Masks from words.json"
OLD = ROOT / "tests" / "fixtures" / "0.1.0" / "graph.json"
MASKS = "GOCA_MaskFromTokens"
# Nodes on which the pack shows something.
FACES = (
    "GOCA_EncodePrompt", "GOCA_Words", "GOCA_CollectAttention", "GOCA_SegmentImage", "GOCA_SaveAttention", MASKS,
    "GOCA_RegionalPrompt", "GOCA_RegionalPass", "GOCA_CollectMasks", "GOCA_Overlay",
)  # fmt: skip
ROW = 24  # pixels of a widget in the classic renderer
PREVIEWS = "(method) => window.app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', method)"
WIDGETS = """() => Object.fromEntries(window.app.graph.nodes.map((node) =>
  [node.id, (node.widgets ?? []).filter((widget) => widget.serialize !== false).length]))"""


def saved_sizes(graph: dict[str, Any]) -> dict[str, list[int]]:
    return {str(n["id"]): [round(side) for side in n["size"]] for n in graph["nodes"] if n["type"] in FACES}


def missing(editor: Editor) -> list[str]:
    """Nodes that the editor does not know; that checkpoints are not there is no fault of a graph."""
    found: list[str] = editor.page.evaluate(
        "() => window.app.graph.nodes.filter((n) => !window.LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    )
    return found


def run_by_api(server: ComfyServer, prompt: dict[str, Any]) -> Run:
    # This thread has an event loop already, playwright's.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(server.run, prompt).result()


@RENDERERS
def test_every_shipped_graph_opens(editor: Editor) -> None:
    for path in (*GRAPHS, *MORE):
        graph = json.loads(path.read_text(encoding="utf-8"))
        if {node["properties"].get("cnr_id") for node in graph["nodes"]} - {"goca", "comfy-core", None}:
            continue  # nodes of another pack, which is not installed
        editor.load(path)
        assert not missing(editor), path.stem
        sizes, wanted = editor.sizes(), saved_sizes(graph)
        for node in graph["nodes"]:
            # ComfyUI gives a node whose inputs follow from a choice its least height, whatever was saved.
            if node["type"] == "GOCA_SegmentImage":
                key = str(node["id"])
                assert sizes[key][1] <= wanted[key][1], f"{node['type']} of {path.stem} grew"
                del wanted[key]
        assert {key: sizes[key] for key in wanted} == wanted, f"nodes of {path.stem} grew"
        api = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        assert editor.prompt() == api, f"run scripts/graphs/export.py '{path.stem}'"
        assert not editor.errors, path.stem


# The window in which the images of docs/images/templates are taken, and the zoom at which a graph at least opens in it.
WINDOW: ViewportSize = {"width": 1600, "height": 1000}
ZOOM, MANY, ZOOM_OF_MANY = 0.4, 20, 0.25  # those of more than MANY nodes do not fit otherwise


@RENDERERS
def test_every_shipped_graph_reads_from_left_to_right(editor: Editor) -> None:
    """As it opens: no wire under a node or a title, and large enough."""
    old = editor.page.viewport_size
    assert old
    editor.page.set_viewport_size(WINDOW)
    try:
        for path in GRAPHS:
            editor.load(path).page.evaluate(FIT)
            editor.page.wait_for_timeout(500)  # the view moves there
            layout = Layout.of(editor)
            wrong = {
                "under a node": layout.under_nodes(),
                "under a title": layout.under_titles(),
                "to the left": layout.backward(),
                "overlap": layout.overlapping(),
            }
            assert not any(wrong.values()), f"run scripts/graphs/arrange.py '{path.stem}': {wrong}"
            assert layout.scale >= (ZOOM if len(layout.nodes) <= MANY else ZOOM_OF_MANY), path.stem
    finally:
        editor.page.set_viewport_size(old)


@RENDERERS
def test_the_first_graph_is_readable_as_it_opens(editor: Editor) -> None:
    """The first card of the templates: few nodes, no wire under one, at a size at which words can be read; no file is saved."""
    editor.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    editor.page.get_by_role("dialog").get_by_text(PACK, exact=True).first.click()
    cards = editor.page.locator("[data-testid^='template-workflow-'] h3")
    editor.page.get_by_test_id(f"template-workflow-{GRAPHS[-1].stem}").wait_for()
    assert cards.all_inner_texts() == [path.stem for path in GRAPHS], "the cards are not in their order"
    editor.page.keyboard.press("Escape")
    editor.template(GRAPHS[0].stem)
    editor.page.wait_for_timeout(500)  # the view moves there
    layout = Layout.of(editor)
    assert len(layout.nodes) <= 8 and layout.scale >= 0.6
    assert not layout.under_nodes() and not layout.backward() and not layout.overlapping()
    kinds = {node["class_type"] for node in editor.prompt().values()}
    assert MASKS in kinds and not [kind for kind in kinds if kind.startswith("Save")]
    editor.page.evaluate(PREVIEWS, "latent2rgb")
    try:
        editor.run()
    finally:
        editor.page.evaluate(PREVIEWS, "default")
    assert not Layout.of(editor).overlapping(), "the preview of the sampler pushes nodes into each other"
    panel = editor.look_at(MASKS)
    assert "red car" in legend(panel)[0]
    assert panel.query_selector("input[type=range]").is_visible(), "the masks are not shown over the image"


def forget(server: ComfyServer) -> None:
    """Have the server run again what it has run before."""
    content = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/free", b'{"free_memory": true}', content), timeout=60
    ).close()
    # It does so between two prompts.
    empty = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    run_by_api(server, {"1": empty, "2": shown})


def pixels(png: bytes) -> tuple[tuple[int, int], bytes]:
    """The image without the graph that ComfyUI writes into its file."""
    image = Image.open(BytesIO(png)).convert("RGBA")
    return image.size, image.tobytes()


# Enough for what is compared here, and most of the time that a graph takes.
STEPS = 5
SHORTEN = """(steps) => window.app.graph.nodes.filter((node) => node.type === 'KSampler').forEach((node) => {
  node.widgets.find((widget) => widget.name === 'steps').value = steps;
})"""


def runs(path: Path) -> bool:
    """Whether a graph needs nothing but the pack."""
    return "GOCA_DemoModel" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in GRAPHS if runs(path)], ids=lambda path: path.stem[:2])
def test_a_graph_from_the_template_browser(editor: Editor, server: ComfyServer, path: Path) -> None:
    """Opened, run, a word clicked, its mask seen, the words at a pixel ranked; and the API gives the same without a browser."""
    editor.template(path.stem)
    assert not missing(editor)
    prompt = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    editor.page.evaluate(SHORTEN, STEPS)
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = STEPS
    # ComfyUI's own nodes may grow when they show an image.
    faces = {key for key, node in prompt.items() if node["class_type"] in FACES}
    before = editor.sizes()
    outputs = editor.run()
    after = editor.sizes()
    assert {key: after[key] for key in faces} == {key: before[key] for key in faces}, "running a graph makes nodes grow"
    if path == GRAPHS[0]:
        forget(server)
    other = run_by_api(server, prompt)
    if path == GRAPHS[0]:
        assert next(key for key, node in prompt.items() if node["class_type"] == "KSampler") in other.executed
    assert outputs.keys() == other.outputs.keys()
    for node, shown in outputs.items():
        assert shown.get("goca_masks") == other.outputs[node].get("goca_masks")
        for ours, theirs in zip(shown.get("images", []), other.outputs[node].get("images", []), strict=True):
            assert pixels(server.fetch(ours)) == pixels(server.fetch(theirs))

    if not any(node["class_type"] == MASKS and isinstance(node["inputs"]["phrases"], str) for node in prompt.values()):
        return  # images only, masks that Collect Masks hands out, or phrases that come from another node
    title = editor.node(MASKS).evaluate("(node) => node.title")  # of several, a click makes this one the last
    panel = editor.look_at(MASKS, title)
    free = {word: chip for word, chip in chips(panel).items() if word not in pressed(panel)}
    word, chip = next(
        (word, chip) for word, chip in reversed(free.items()) if "goca-minor" not in (chip.get_attribute("class") or "")
    )
    # LoRA by Mask takes one mask: with Shift the word joins the phrase.
    one = any(node["class_type"] == "GOCA_LoRAByMask" for node in prompt.values())
    chip.click(modifiers=["Shift"] if one else [])
    editor.settle()
    editor.run()
    panel = editor.look_at(MASKS, title)
    assert word in pressed(panel)
    assert [entry.rsplit(" ", 2)[0] for entry in legend(panel)][-2].endswith(word)
    assert re.fullmatch(r"[^:]+: (\S+ [\d.]+ %( · )?)+", hover(editor, panel, 0.5, 0.5))


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
    """As the node library offers it: wired to a model and an image, it needs no more than words."""
    offered = server.get_json("/global_subgraphs")
    (key,) = [key for key, entry in offered.items() if entry["name"] == BLUEPRINT.stem]
    editor.load(json.loads(server.get_json(f"/global_subgraphs/{key}")["data"]))
    assert not missing(editor)
    ((outer,),) = [editor.saved()["nodes"]]
    assert [entry["name"] for entry in outer["outputs"]] == ["masks", "background", "labels", "attention"]
    for name, value in (("prompt", "a red circle on grass"), ("phrases", "red circle")):
        set_ = "([name, value]) => { window.app.graph.nodes[0].widgets.find((w) => w.name === name).value = value; }"
        editor.page.evaluate(set_, [name, value])
    prompt = editor.prompt()
    of = {node["class_type"]: key for key, node in prompt.items()}
    model, image = "model", "image"
    prompt[model] = {"class_type": "GOCA_DemoModel", "inputs": {}}
    colour = {"width": 64, "height": 64, "batch_size": 1, "color": 0xCC2200}
    prompt[image] = {"class_type": "EmptyImage", "inputs": colour}
    prompt[of["GOCA_SegmentImage"]]["inputs"]["model"] = [model, 0]
    prompt[of["GOCA_EncodePrompt"]]["inputs"]["clip"] = [model, 1]
    prompt[of["VAEEncode"]]["inputs"] |= {"pixels": [image, 0], "vae": [model, 2]}
    shown = {"image": [image, 0], "source": [of["GOCA_MaskFromTokens"], 0], "labels": "", "opacity": 0.5}
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
