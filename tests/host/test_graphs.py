"""The example graphs run on a real server and give what they promise; both of their formats say the same."""

from __future__ import annotations

import asyncio
import io
import json
import re
import urllib.parse
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca_core.demo.scenes import draw
from scripts import demo
from scripts.comfy_server import PACK, ComfyServer, NodeError, Prompt, Run
from scripts.graphs.files import api_file, graph_file
from tests.conftest import ROOT, need
from tests.shapes import of_shapes, saved_with_shapes

API = sorted((ROOT / "workflows" / "api").glob("*.json"))
EDITOR = sorted((ROOT / "workflows").glob("*.json"))
WEIGHTS = ROOT / "demo" / "goca_demo.safetensors"
MORE = sorted((ROOT / "workflows" / "more").glob("*.json"))
ALL = [*EDITOR, *MORE]
# Those whose nodes are all ComfyUI's or ours; of the others tests/host/test_mask_consumers.py tests the wires.
OURS = [
    path for path in ALL if set(re.findall(r'"cnr_id": "([^"]*)"', path.read_text("utf-8"))) <= {"goca", "comfy-core"}
]
TITLE = 30  # pixels of a node's title bar in the editor


def graph(name: str) -> Prompt:
    """With the model of shapes, for speed; tests/browser runs every graph as it is."""
    return of_shapes(demo.load_graph(api_file(name)))


def title_of(path: Path) -> str:
    return path.stem[3:].partition(" (")[0]


def by_type(prompt: Prompt, kind: str, title: str = "") -> str:
    (found,) = [k for k, n in prompt.items() if n["class_type"] == kind and (not title or demo.title(n) == title)]
    return found


def images_of(server: ComfyServer, run: Run, node: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(server.fetch(image)))) for image in run.outputs[node]["images"]]


def shortened(prompt: Prompt) -> Prompt:
    """Fewer steps: what is checked here does not depend on the image's quality."""
    assert demo.put(prompt, 2, ["steps"])
    return prompt


@pytest.fixture(autouse=True)
def weights(request: pytest.FixtureRequest) -> None:
    if "runs" in request.node.name:
        need(WEIGHTS.is_file(), "the demo model has no weights yet: demo/goca_demo.safetensors")


# -- they run --------------------------------------------------------------------------------------------------------


def check_table(run: Run, prompt: Prompt, phrases: list[str], kind: str = "GOCA_MaskFromTokens") -> dict[str, Any]:
    table: dict[str, Any]
    (table,) = run.outputs[by_type(prompt, kind)]["goca_masks"]
    assert table["phrases"] == phrases
    return table


def check_masks(server: ComfyServer, run: Run, prompt: Prompt, phrases: list[str], side: int) -> None:
    table = check_table(run, prompt, phrases)
    masks = np.stack(images_of(server, run, by_type(prompt, "SaveImage", "Masks")))[..., 0]
    assert masks.shape == (len(phrases), side, side)
    assert set(np.unique(masks)) <= {0, 255}
    assert ((masks > 0).sum(0) <= 1).all(), "masks of a partition overlap"
    areas = (masks > 0).mean((1, 2))
    assert np.allclose(areas, table["area"][0], atol=1e-4)
    assert areas.sum() + table["background"][0] == pytest.approx(1, abs=1e-4)


def test_the_demo_graph_runs(server: ComfyServer) -> None:
    prompt = demo.load_graph(api_file("Every step"))
    run = server.run(prompt)
    check_masks(server, run, prompt, ["red car", "tree"], 128)
    (table,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens")]["goca_masks"]
    assert min(table["area"][0]) > 0.03, "a thing of the prompt is not in the image"
    (image,) = images_of(server, run, by_type(prompt, "SaveImage", "Image"))
    assert image.shape == (128, 128, 3)
    assert image.std() > 5, "the image is empty"
    (overlay,) = images_of(server, run, by_type(prompt, "SaveImage", "Overlay"))
    (heat,) = images_of(server, run, by_type(prompt, "SaveImage", "Heat maps"))
    assert overlay.shape[1] == 256 and overlay.shape[0] > 256, "an overlay is enlarged and has its legend below"
    # The image and five content words, four in a row.
    assert heat.shape[1] > 4 * 256 and heat.shape[0] > 2 * 256
    names = {image["filename"].split("_")[0] for shown in run.outputs.values() for image in shown.get("images", [])}
    assert {"image", "mask", "overlay", "heat"} <= names
    rows = demo.table_rows(run, prompt)
    assert [row[0] for row in rows] == ["red car", "tree", "background"]


def test_other_phrases_runs_without_sampling(server: ComfyServer) -> None:
    prompt = shortened(graph("Every step"))
    server.run(prompt)
    prompt[by_type(prompt, "GOCA_MaskFromTokens")]["inputs"]["phrases"] = "circle\nsquare\ngrass"
    run = server.run(prompt)
    assert by_type(prompt, "KSampler") in run.cached
    check_masks(server, run, prompt, ["circle", "square", "grass"], 64)


def test_the_short_chain_runs_to_the_same_masks(server: ComfyServer) -> None:
    """Mask From Tokens and Overlay do by themselves what Aggregate and Rescale do with their defaults."""
    prompt = shortened(graph("Every step"))
    (whole,) = server.run(prompt).outputs[by_type(prompt, "GOCA_MaskFromTokens")]["goca_masks"]
    scores = by_type(prompt, "GOCA_Rescale")
    for node in prompt.values():
        if node["inputs"].get("source") == [scores, 0]:
            node["inputs"]["source"] = [by_type(prompt, "GOCA_CollectAttention"), 0]
    del prompt[by_type(prompt, "GOCA_Aggregate")], prompt[scores]
    run = server.run(prompt)
    (short,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens")]["goca_masks"]
    assert short == whole
    assert run.outputs[by_type(prompt, "GOCA_Overlay", "Heat map of every word")]["images"]


def test_the_checkpoint_graph_runs_with_another_model(server: ComfyServer) -> None:
    """No checkpoint is at hand, so the demo model takes the loader's place: its outputs have the same order."""
    prompt = shortened(graph("Masks with your checkpoint"))
    prompt[by_type(prompt, "CheckpointLoaderSimple")] |= {"class_type": "GOCA_DemoModel", "inputs": {}}
    prompt[by_type(prompt, "EmptyLatentImage")]["inputs"] |= {"width": 96, "height": 64}
    run = server.run(prompt)
    check_table(run, prompt, ["cat", "dog"])
    (image,) = images_of(server, run, by_type(prompt, "SaveImage", "Image"))
    assert image.shape == (64, 96, 3)


def test_the_graph_of_a_video_runs_with_another_model(server: ComfyServer) -> None:
    """The demo model makes images only, so a batch of five stands for a video here; the wires are the graph's."""
    prompt = shortened(graph("Masks for video"))
    loaders = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    places = {by_type(prompt, kind): output for kind, output in loaders.items()}
    prompt["demo"] = {"class_type": "GOCA_DemoModel", "inputs": {}}
    shifted = by_type(prompt, "ModelSamplingSD3")
    prompt[by_type(prompt, "GOCA_RecordAttention")]["inputs"]["model"] = ["demo", 0]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in places:
                node["inputs"][name] = ["demo", places[value[0]]]
    for node in (*places, shifted):
        del prompt[node]
    latent = prompt[by_type(prompt, "EmptyHunyuanLatentVideo")]
    latent |= {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 5}}
    run = server.run(prompt)
    (table,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens", "The fox alone")]["goca_masks"]
    assert table["phrases"] == ["fox"] and len(table["area"]) == 5
    for title in ("Video", "Overlay", "Mask of the fox"):
        (image,) = run.outputs[by_type(prompt, "SaveAnimatedWEBP", title)]["images"]
        with Image.open(io.BytesIO(server.fetch(image))) as video:
            assert getattr(video, "n_frames", 1) > 1


def test_a_recording_runs_through_a_file(server: ComfyServer) -> None:
    """The upper row of the graph, then its muted lower row with the file that was saved."""
    prompt = shortened(graph("Every step"))
    run = server.run(prompt)
    (name,) = run.outputs[by_type(prompt, "GOCA_SaveAttention")]["text"]
    place, _, file = name.partition("/")
    assert place == "output" and (server.output / "goca" / file).is_file()
    (table,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens")]["goca_masks"]
    assert table["phrases"] == ["red circle", "blue square"]

    whole = queued(saved_with_shapes("Every step"), server.object_info(), muted=True)
    load = by_type(whole, "GOCA_LoadAttention")
    whole[load]["inputs"]["file"] = name
    lower = ancestors(whole, by_type(whole, "PreviewImage"))
    assert "KSampler" not in {node["class_type"] for node in lower.values()}
    run = server.run(lower)
    (again,) = run.outputs[by_type(lower, "GOCA_MaskFromTokens")]["goca_masks"]
    assert again["phrases"] == ["red circle, blue square"]
    (mask,) = images_of(server, run, by_type(lower, "PreviewImage"))
    assert mask.shape[:2] == (64, 64) and set(np.unique(mask)) <= {0, 255}


def check_segmented(server: ComfyServer, prompt: Prompt, phrases: list[str], side: int) -> Run:
    run = server.run(prompt)
    table = check_table(run, prompt, phrases)
    assert sum(table["area"][0]) + table["background"][0] == pytest.approx(1, abs=1e-4)
    assert said(run, prompt).splitlines()[0].startswith(f"1 x {side} x {side} pixels")
    assert images_of(server, run, by_type(prompt, "GOCA_Overlay"))
    return run


def test_the_demo_graph_of_segmenting_runs(server: ComfyServer) -> None:
    prompt = shortened(graph("Masks of a photo"))
    check_segmented(server, prompt, ["blue square", "red circle"], 64)
    segment = prompt[by_type(prompt, "GOCA_SegmentImage")]["inputs"]
    assert "recorded at noise level 0.346" in said(server.run(prompt), prompt)
    # Other evaluations of the same image: it is not sampled again.
    level = {"noise_level": "percent range", "noise_level.start_percent": 0.8, "noise_level.end_percent": 0.9}
    segment |= {**level, "noise_level.levels": 2, "draws": 2, "flip": True, "seed": 7}
    run = check_segmented(server, prompt, ["blue square", "red circle"], 64)
    assert by_type(prompt, "KSampler") in run.cached
    assert said(run, prompt).count("(4 times)") == 2


def test_one_node_runs_to_the_masks_of_the_steps(server: ComfyServer) -> None:
    """Mask From Image does what Segment Image and Mask From Tokens do, from an image or from its latent."""
    prompt = shortened(graph("Masks of a photo"))
    one = by_type(prompt, "GOCA_MaskFromImage")
    run = server.run(prompt)
    steps = check_table(run, prompt, ["blue square", "red circle"])
    assert check_table(run, prompt, ["blue square", "red circle"], "GOCA_MaskFromImage") == steps
    (view,) = run.outputs[one]["goca_view"]
    assert {"words", "masks", "heat", "steps", "picture"} <= view.keys()
    inputs = prompt[one]["inputs"]
    inputs["latent"] = [by_type(prompt, "VAEEncode"), 0]
    del inputs["vae"]
    assert check_table(server.run(prompt), prompt, ["blue square", "red circle"], "GOCA_MaskFromImage") == steps
    del inputs["latent"]
    with pytest.raises(NodeError, match="The image needs a VAE: connect that of the model's loader"):
        server.run(prompt)
    del inputs["image"]
    with pytest.raises(NodeError, match="There is no image: connect an IMAGE and the model's VAE, or a LATENT"):
        server.run(prompt)


def test_one_node_runs_on_large_images_at_a_smaller_size(server: ComfyServer) -> None:
    """Scaled down for the model; the masks have the size of the image, which is no multiple of anything."""
    scene = draw(6, 190, 262, plain=True)
    Image.fromarray(scene.image).save(server.base / "input" / "photo.png")
    names = [item.name for item in scene.objects]
    prompt = {"demo": {"class_type": "GOCA_DemoModel", "inputs": {}}}
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    own = {
        "text": scene.caption,
        "phrases": "\n".join(names),
        "theta": 0.0,
        "megapixels": 0.02,
        "draws": 1,
        "flip": True,
        "seed": 1,
    }
    wires = {"model": ["demo", 0], "clip": ["demo", 1], "vae": ["demo", 2], "image": ["photo", 0]}
    prompt["one"] = {"class_type": "GOCA_MaskFromImage", "inputs": {**own, **wires}}
    prompt["shown"] = {"class_type": "MaskPreview", "inputs": {"mask": ["one", 0]}}
    run = server.run(prompt)
    check_table(run, prompt, names, "GOCA_MaskFromImage")
    assert {image.shape[:2] for image in images_of(server, run, "shown")} == {scene.image.shape[:2]}
    assert len(images_of(server, run, "shown")) == len(names)


def said(run: Run, prompt: Prompt) -> str:
    (text,) = run.outputs[by_type(prompt, "GOCA_SegmentImage")]["text"]
    return str(text)


def test_a_photo_runs_in_place_of_the_first_half(server: ComfyServer) -> None:
    """As the note of the graph says: Load Image, scaled, of another size than the model's."""
    scene = draw(6, 90, 90, plain=True)
    Image.fromarray(scene.image).save(server.base / "input" / "photo.png")
    prompt = graph("Masks of a photo")
    image = by_type(prompt, "VAEDecode")
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    scaled = {"image": ["photo", 0], "upscale_method": "lanczos", "megapixels": 0.015, "resolution_steps": 64}
    prompt[image] |= {"class_type": "ImageScaleToTotalPixels", "inputs": scaled}
    prompt[by_type(prompt, "GOCA_EncodePrompt")]["inputs"]["text"] = scene.caption
    names = [item.name for item in scene.objects]
    prompt[by_type(prompt, "GOCA_MaskFromTokens")]["inputs"]["phrases"] = "\n".join(names)
    run = check_segmented(server, prompt, names, 128)
    assert by_type(prompt, "KSampler") not in run.executed


def test_the_refined_graph_runs_to_three_kinds_of_masks(server: ComfyServer) -> None:
    prompt = graph("Sharper masks")
    run = server.run(prompt)
    tables = [
        run.outputs[name]["goca_masks"][0]
        for name, node in prompt.items()
        if node["class_type"] == "GOCA_MaskFromTokens"
    ]
    assert [table["phrases"] for table in tables] == [["yellow star", "purple heart"]] * 3
    areas = [table["area"][0] for table in tables]
    assert len({tuple(area) for area in areas}) == 3, "refining changed nothing"
    assert all(abs(a - b) < 0.1 for area in areas[1:] for a, b in zip(area, areas[0], strict=True))
    assert sum(len(run.outputs[name].get("images", [])) for name in run.outputs) == 3


def ancestors(prompt: Prompt, node: str) -> Prompt:
    wanted, waiting = {}, [node]
    while waiting:
        name = waiting.pop()
        wanted[name] = prompt[name]
        waiting += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return wanted


# -- they are sound --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> dict[str, Any]:
    return server.object_info()


def saved_graph(name: str) -> dict[str, Any]:
    """The graph as the editor saves it."""
    found: dict[str, Any] = json.loads(graph_file(name).read_text(encoding="utf-8"))
    return found


def queued(editor: dict[str, Any], info: dict[str, Any], muted: bool = False) -> Prompt:
    """What the editor makes of a saved graph when it queues it, worked out from the file alone.

    muted: with the nodes that are muted.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in editor["links"]}
    prompt = {}
    for node in editor["nodes"]:
        if node["type"] == "MarkdownNote" or (node["mode"] != 0 and not muted):
            continue
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for group in ("required", "optional"):
            for name, spec in info[node["type"]]["input"].get(group, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                    inputs[name] = next(values)
                    (brought,) = [choice["inputs"] for choice in options["options"] if choice["key"] == inputs[name]]
                    inputs |= {f"{name}.{inner}": next(values) for inner in brought.get("required", {})}
                elif options.get("forceInput"):
                    continue
                elif isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    inputs[name] = next(values)
                    if options.get("control_after_generate"):
                        assert next(values) in ("fixed", "randomize", "increment", "decrement")
        assert next(values, None) is None, f"node {node['id']} has more values than widgets"
        inputs |= {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        title = node.get("title") or info[node["type"]]["display_name"] or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


def test_every_graph_is_there_in_both_formats() -> None:
    for graphs in (EDITOR, MORE):
        assert [path.name for path in graphs] == sorted(path.name for path in (graphs[0].parent / "api").glob("*.json"))


def test_the_templates_are_few_and_their_names_say_what_they_are() -> None:
    """ComfyUI shows the name of the file as title and as description, of which it makes dashes spaces."""
    assert 4 <= len(EDITOR) <= 12
    for number, path in enumerate(EDITOR, start=1):
        name = re.fullmatch(r"(\d\d) ([A-Z][\w ]+) \([\w,. ]+\)", path.stem)
        assert name and int(name[1]) == number and len(path.stem) <= 80, path.stem
        assert len(name[2]) <= 28, "the card cuts longer titles"
    assert title_of(EDITOR[0]) == "Masks from words"


@pytest.mark.parametrize("path", OURS, ids=title_of)
def test_both_formats_say_the_same(path: Path, info: dict[str, Any]) -> None:
    assert queued(saved_graph(title_of(path)), info) == demo.load_graph(api_file(title_of(path)))


def problems(prompt: Prompt, host: SimpleNamespace) -> list[str]:
    """What ComfyUI finds wrong with a prompt. Which models there are is the user's affair."""
    _, error, _, nodes = asyncio.run(host.execution.validate_prompt("0", prompt, None))
    if error and not nodes:
        return [error["message"]]
    found = [(node["class_type"], problem) for node in nodes.values() for problem in node["errors"]]
    texts = [f"{kind}: {problem['message']}: {problem['details']}" for kind, problem in found]
    return [text for text in texts if ".safetensors" not in text]


@pytest.mark.parametrize("path", OURS, ids=title_of)
def test_comfyui_accepts_every_node(path: Path, info: dict[str, Any], host: SimpleNamespace, pack: ModuleType) -> None:
    """The muted ones, too: all inputs are connected to the right types, and every value is one that the node takes."""
    Image.new("RGB", (8, 8)).save(Path(host.folder_paths.get_input_directory()) / "example.png")
    prompt = queued(saved_graph(title_of(path)), info, muted=True)
    assert not problems(prompt, host)
    # The check itself works: a value out of range is found.
    node = next(node for node in prompt.values() if node["class_type"] in ("GOCA_MaskFromTokens", "KSampler"))
    node["inputs"] |= {"theta": 9.0, "cfg": -5.0}
    assert len(problems(prompt, host)) == 1


@pytest.mark.parametrize("path", ALL, ids=title_of)
def test_links_are_known_at_both_ends(path: Path) -> None:
    editor = saved_graph(title_of(path))
    nodes = {node["id"]: node for node in editor["nodes"]}
    assert len(nodes) == len(editor["nodes"]) and max(nodes) <= editor["last_node_id"]
    for number, source, output, target, slot, kind in editor["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == number


@pytest.mark.parametrize("path", ALL, ids=title_of)
def test_nodes_do_not_overlap(path: Path) -> None:
    nodes = saved_graph(title_of(path))["nodes"]
    boxes = [(x, y - TITLE, x + w, y + h) for (x, y), (w, h) in ((n["pos"], n["size"]) for n in nodes)]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_comfyui_knows_every_node_of_the_graphs(info: dict[str, Any]) -> None:
    used = {node["class_type"] for path in API for node in json.loads(path.read_text(encoding="utf-8")).values()}
    assert not used - info.keys()


def test_every_node_of_the_pack_is_in_a_graph(info: dict[str, Any]) -> None:
    used = {node["type"] for path in ALL for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    ours = {name for name in info if name.startswith("GOCA_")}
    assert not ours - used


def test_comfyui_offers_the_graphs_as_templates(server: ComfyServer) -> None:
    offered = server.get_json("/api/workflow_templates")[PACK]
    assert offered == [path.stem for path in EDITOR], (
        "in order: the first one first, whatever order the disk has them in"
    )
    for path in EDITOR:
        served = server.get(f"/api/workflow_templates/{PACK}/{urllib.parse.quote(path.name)}")
        assert served == path.read_bytes()


def test_every_template_has_an_image(server: ComfyServer) -> None:
    for path in EDITOR:
        image = path.with_suffix(".jpg")
        served = server.get(f"/api/workflow_templates/{PACK}/{urllib.parse.quote(image.name)}")
        assert served == image.read_bytes() and len(served) < 40_000
    assert len({path.with_suffix(".jpg").read_bytes() for path in EDITOR}) == len(EDITOR), "each has its own"


def test_comfyui_offers_the_blueprints(server: ComfyServer) -> None:
    offered = {entry["name"]: entry for entry in server.get_json("/global_subgraphs").values()}
    for path in (ROOT / "subgraphs").glob("*.json"):
        assert offered[path.stem]["info"]["node_pack"].endswith(PACK)
