"""What nodes tell the browser: ordinary temporary images of a run, its words, and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt
from scripts.graphs.files import api_file
from tests.conftest import ROOT, need
from tests.shapes import of_shapes

GRAPH = api_file("Every step")
SAVED = ROOT / "tests" / "fixtures" / "0.1.0" / "graph.json"


@pytest.fixture(scope="module", autouse=True)
def weights() -> None:
    need((ROOT / "demo" / "goca_demo.safetensors").is_file(), "the demo model has no weights yet")


def graph(seed: int = 3) -> Prompt:
    """The demo, of two images and with few steps."""
    prompt = of_shapes(demo.load_graph(GRAPH))
    assert demo.put(prompt, 2, ["steps"]) and demo.put(prompt, seed, ["seed"]) and demo.put(prompt, 2, ["batch_size"])
    return prompt


def shown(outputs: dict[str, dict[str, Any]], prompt: Prompt, kind: str, title: str = "") -> dict[str, Any]:
    (found,) = [
        k for k, node in prompt.items() if node["class_type"] == kind and (not title or demo.title(node) == title)
    ]
    return outputs[found]


def image_of(server: ComfyServer, file: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(server.fetch(file)))


def files_in(value: Any) -> list[dict[str, str]]:
    if isinstance(value, dict):
        return [value] if "filename" in value else [file for inner in value.values() for file in files_in(inner)]
    return [file for inner in value for file in files_in(inner)] if isinstance(value, list) else []


def tile(server: ComfyServer, sheet: dict[str, Any], sample: int, name: str) -> np.ndarray:
    row, column = divmod(sheet["names"].index(name), sheet["columns"])
    height, width = sheet["height"], sheet["width"]
    image = np.asarray(image_of(server, sheet["files"][sample]))
    return image[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_masks_words_and_images_of_a_run(server: ComfyServer) -> None:
    prompt = graph()
    outputs = server.run(prompt).outputs
    masks = shown(outputs, prompt, "GOCA_MaskFromTokens")
    (view,), (table,) = masks["goca_view"], masks["goca_masks"]
    assert view["masks"]["names"] == table["phrases"] == ["red circle", "blue square"]
    assert view["heat"]["names"] == ["red", "circle", "blue", "square", "on", "grass"]
    assert [word["tokens"] for word in view["words"]["words"]][1] == [2]
    saved = [
        np.asarray(image_of(server, file))[..., 0] for file in shown(outputs, prompt, "SaveImage", "Masks")["images"]
    ]
    for sample in range(2):
        for k, name in enumerate(table["phrases"]):
            mask = tile(server, view["masks"], sample, name)
            assert np.array_equal(mask, saved[2 * sample + k])
            assert (mask > 0).mean() == pytest.approx(table["area"][sample][k], abs=1e-4)
        for name in view["heat"]["names"]:
            assert tile(server, view["heat"], sample, name).shape == (64, 64)
    (over,) = shown(outputs, prompt, "GOCA_Overlay", "Masks over the image")["goca_view"]
    assert over["masks"]["digest"] == view["masks"]["digest"]
    generated = shown(outputs, prompt, "SaveImage", "Image")["images"]
    files = [*over["picture"]["files"], *view["picture"]["files"]]
    for file, original in zip(files, [*generated, *generated], strict=True):
        difference = np.asarray(image_of(server, file), int) - np.asarray(image_of(server, original), int)
        assert np.abs(difference).max() <= 1, "ComfyUI cuts off where this rounds"
    (heat,) = shown(outputs, prompt, "GOCA_Overlay", "Heat map of every word")["goca_view"]
    assert heat["heat"]["names"] == ["red", "circle", "blue", "square", "on", "grass"]
    assert json.loads(json.dumps(outputs)) == outputs


def test_files_are_temporary_small_and_say_nothing_else(server: ComfyServer) -> None:
    first, second = (
        files_in([output.get("goca_view", []) for output in server.run(graph(seed)).outputs.values()])
        for seed in (4, 5)
    )
    names = [file["filename"] for file in (*first, *second)]
    assert len(names) == 32 and len(set(names)) == 32, "files of two runs are mixed up"
    for file in first:
        assert file["type"] == "temp" and not file["subfolder"]
        assert Path(file["filename"]).name == file["filename"] and len(file["filename"]) > 32
        content = server.fetch(file)
        assert len(content) < 64_000
        assert not Image.open(io.BytesIO(content)).info.get("prompt")


def opened(saved: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """What the editor makes of a saved graph: its values by the names it was saved with, defaults for what is newer."""
    sources = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    prompt: Prompt = {}
    for node in saved["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        known = {**info[node["type"]]["input"].get("required", {}), **info[node["type"]]["input"].get("optional", {})}
        assert {entry["name"] for entry in node["inputs"]} <= known.keys(), "an input of the first version is gone"
        options = {name: spec[1] if len(spec) > 1 else {} for name, spec in known.items()}
        inputs = {name: option["default"] for name, option in options.items() if "default" in option}
        values = iter(node["widgets_values"])
        for entry in node["inputs"]:
            if "widget" in entry:
                inputs[entry["name"]] = next(values)
                if options[entry["name"]].get("control_after_generate"):
                    next(values)
            if entry["link"] is not None:
                inputs[entry["name"]] = sources[entry["link"]]
        assert next(values, None) is None
        title = node.get("title", node["type"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def test_a_graph_of_the_first_version_runs(server: ComfyServer) -> None:
    """How the editor opens it is seen in tests/browser."""
    prompt = opened(json.loads(SAVED.read_text(encoding="utf-8")), server.object_info())
    assert demo.put(prompt, 2, ["steps"])
    (table,) = shown(server.run(prompt).outputs, prompt, "GOCA_MaskFromTokens")["goca_masks"]
    assert table["phrases"] == ["red circle", "blue square"]
