"""The node Refine, as ComfyUI runs it, and the robust range of Rescale."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import demo
from scripts.comfy_server import ComfyServer, NodeError, Prompt
from scripts.graphs.files import api_file
from tests.conftest import ROOT, need
from tests.shapes import of_shapes

from . import tiny
from .device import ACCELERATED
from .helpers import job, words_of

PHRASES = "red cat\ngrass"
PAMR = {"method": "pamr", "iterations": 5, "reach": 0}
GUIDED = {"method": "guided filter", "radius": 0, "eps": 0.001}
MERGE = {"method": "proposal merge", "tolerance": 0.2, "stride": 4, "threshold": 0.5}


# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(host: SimpleNamespace, pack: ModuleType) -> Callable[..., Any]:
    """Runs a node by its short name; gives its outputs, or the one it has."""

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            result = host.nodes.NODE_CLASS_MAPPINGS[f"GOCA_{name}"].execute(*args, **kwargs).result
        return result[0] if len(result) == 1 else result

    return run


@pytest.fixture(scope="module")
def attention(node: Callable[..., Any]) -> Any:
    """What a tiny SD 1.5 did for two images of 128 x 192."""
    built = tiny.build("sd15")
    model, recorder = node("RecordAttention", built.model, "auto", 0.5, 1.0, 4)
    work = job(built, 2, positive=built.conditioning(seed=1, goca_words=words_of("a red cat on grass")))
    return node("CollectAttention", recorder, work.run(model))


def masks_of(node: Callable[..., Any], source: Any, mode: str = "partition") -> Any:
    return node("MaskFromTokens", source, PHRASES, "on", mode)[0]


@pytest.mark.parametrize("method", [PAMR, GUIDED, MERGE], ids=lambda method: method["method"])
def test_masks_of_every_method(node: Callable[..., Any], attention: Any, method: dict[str, Any]) -> None:
    images = torch.rand(2, 128, 192, 3, generator=torch.Generator().manual_seed(1))
    kept = images.clone()
    refined = node("Refine", attention, dict(method), images)
    masks = masks_of(node, refined)
    assert masks.shape == (4, 128, 192) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(masks, masks_of(node, attention)) and torch.equal(images, kept)
    maps = node("Aggregate", attention, "auto", "auto")
    for source in (maps, node("Rescale", maps, "auto")):
        # On a GPU, maps that were on the CPU in between are rounded differently.
        moved = masks_of(node, node("Refine", source, dict(method), images)) != masks
        assert moved.float().mean() <= (0.03 if ACCELERATED else 0)
    assert node("Overlay", images, refined, "", 0.5).shape[0] == 2


def test_several_in_a_row(node: Callable[..., Any], attention: Any) -> None:
    images = torch.rand(1, 64, 96, 3)
    # The attention of a model without training is nearly the same everywhere.
    merged = node("Refine", attention, dict(MERGE, tolerance=0.001, threshold=0.1))
    assert set(masks_of(node, merged, "soft").unique().tolist()) > {0.0, 1.0}
    scores = masks_of(node, node("Refine", node("Refine", merged, PAMR, images), GUIDED, images), "soft")
    assert scores.shape == (4, 128, 192) and torch.isfinite(scores).all()
    assert len(scores.unique()) > 100
    with pytest.raises(ValueError, match="put it before that one"):
        node("Refine", node("Refine", attention, PAMR, images), MERGE)


def test_what_is_missing_is_named(node: Callable[..., Any], attention: Any) -> None:
    with pytest.raises(
        ValueError, match=r"guided filter needs the image: connect the decoded image to the image input\."
    ):
        node("Refine", attention, GUIDED)
    with pytest.raises(ValueError, match="There are 3 images but scores for 2"):
        node("Refine", attention, PAMR, torch.rand(3, 8, 8, 3))


def test_the_range_of_rescale(node: Callable[..., Any], attention: Any) -> None:
    maps = node("Aggregate", attention, "auto", "auto")
    full, robust = (masks_of(node, node("Rescale", maps, "auto", range=name), "soft") for name in ("full", "robust"))
    assert torch.equal(full, masks_of(node, node("Rescale", maps, "auto"), "soft"))
    assert not torch.equal(full, robust)
    assert robust.min() < 0.05 and robust.max() > 0.95


def test_what_the_node_offers_is_what_there_is(host: SimpleNamespace, pack: ModuleType) -> None:
    info = host.nodes.NODE_CLASS_MAPPINGS["GOCA_Refine"].GET_NODE_INFO_V1()
    options = {option["key"]: option["inputs"] for option in info["input"]["required"]["method"][1]["options"]}
    known = importlib.import_module(f"{pack.__name__}.goca_core.refine.methods").REFINEMENTS
    assert list(options) == list(known)
    for name, inputs in options.items():
        defaults = {key: spec[1]["default"] for key, spec in inputs["required"].items()}
        assert known[name](**defaults) == known[name]()


# -- on a server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph() -> Prompt:
    """The demo graph with few steps, its masks refined."""
    need((ROOT / "demo" / "goca_demo.safetensors").is_file(), "the demo model has no weights yet")
    prompt = of_shapes(demo.load_graph(api_file("Every step")))
    assert demo.put(prompt, 2, ["steps"])
    types = {node["class_type"]: name for name, node in prompt.items()}
    prompt["100"] = {
        "class_type": "GOCA_Refine",
        "inputs": {
            "source": [types["GOCA_Rescale"], 0],
            "image": [types["VAEDecode"], 0],
            "method": "pamr",
            "method.iterations": 5,
            "method.reach": 0,
        },
        "_meta": {"title": "Refine"},
    }
    prompt[types["GOCA_MaskFromTokens"]]["inputs"]["source"] = ["100", 0]
    return prompt


def table(server: ComfyServer, prompt: Prompt) -> tuple[dict[str, Any], set[str]]:
    """Areas and scores of the masks, and the types of the nodes that did not run again."""
    run = server.run(prompt)
    (name,) = [name for name, node in prompt.items() if node["class_type"] == "GOCA_MaskFromTokens"]
    return run.outputs[name]["goca_masks"][0], {prompt[cached]["class_type"] for cached in run.cached}


def test_a_change_of_it_makes_new_masks_and_no_new_image(server: ComfyServer, graph: Prompt) -> None:
    first, _ = table(server, graph)
    graph["100"]["inputs"]["method.iterations"] = 30
    second, cached = table(server, graph)
    assert second != first
    assert {"KSampler", "GOCA_CollectAttention", "GOCA_Rescale"} <= cached
    assert not {"GOCA_Refine", "GOCA_MaskFromTokens"} & cached
    kept = {name: value for name, value in graph["100"]["inputs"].items() if not name.startswith("method")}
    graph["100"]["inputs"] = {**kept, "method": "proposal merge", "method.tolerance": 0.2, "method.stride": 2}
    graph["100"]["inputs"]["method.threshold"] = 0.5
    third, _ = table(server, graph)
    assert third not in (first, second)
    graph["100"]["inputs"] = {**kept, "method": "pamr", "method.iterations": 5, "method.reach": 0}
    assert table(server, graph)[0] == first


def test_errors_as_a_user_sees_them(server: ComfyServer, graph: Prompt) -> None:
    image = graph["100"]["inputs"].pop("image")
    with pytest.raises(NodeError, match="pamr needs the image: connect the decoded image to the image input"):
        server.run(graph)
    graph["100"]["inputs"] |= {"image": image, "method.iterations": 0}
    # ComfyUI refuses a number that is out of range, and makes only what does not depend on it.
    outputs = server.run(graph).outputs
    assert outputs and not [name for name in outputs if graph[name]["class_type"] == "GOCA_MaskFromTokens"]


def test_a_graph_from_before_the_range_still_runs(server: ComfyServer, graph: Prompt) -> None:
    (rescale,) = [node for node in graph.values() if node["class_type"] == "GOCA_Rescale"]
    expected, _ = table(server, graph)
    assert rescale["inputs"].pop("range") == "full"
    assert table(server, graph)[0] == expected
    rescale["inputs"]["range"] = "robust"
    assert table(server, graph)[0] != expected
