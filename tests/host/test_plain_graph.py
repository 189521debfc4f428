"""Masks from the graph that a user has: a loader, two CLIP Text Encode, a latent, a sampler, a decoder, and Save Image."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.comfy_server import ComfyServer, NodeError, Prompt, Run
from tests.conftest import ROOT, need

TEXT = "a red circle and a blue square on grass"
DEFAULTS: dict[str, dict[str, Any]] = {
    "GOCA_RecordAttention": {
        "window": "auto", "start_percent": 0.5, "end_percent": 1.0, "max_evaluations": 4, "head_methods": "auto",
        "layer_methods": "auto", "propagation_grid": "auto", "reference_channel0": False,
    },
    "GOCA_MaskFromTokens": {
        "background": "auto", "mode": "partition", "background_rule": "offset", "theta": 0.0, "propagation": -1,
        "smooth": 0.0, "largest_component": False, "size": "image", "width": 512, "height": 512,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def weights() -> None:
    need((ROOT / "demo" / "goca_demo.safetensors").is_file(), "the demo model has no weights yet")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": {**DEFAULTS.get(kind, {}), **inputs}}


@pytest.fixture
def plain() -> Prompt:
    return {
        "loader": node("GOCA_DemoModel"),
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "negative": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "sampler": node(
            "KSampler", model=["loader", 0], seed=3, steps=4, cfg=4.0, sampler_name="euler", scheduler="karras",
            positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0], denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="plain"),
    }  # fmt: skip


def with_masks(prompt: Prompt, phrases: str = "red circle\nblue square") -> Prompt:
    """Two nodes more: the model goes through one, the other gets its recorder and the sampler's LATENT."""
    made = copy.deepcopy(prompt)
    made["record"] = node("GOCA_RecordAttention", model=["loader", 0])
    made["sampler"]["inputs"]["model"] = ["record", 0]
    made["masks"] = node("GOCA_MaskFromTokens", source=["record", 1], latent=["sampler", 0], phrases=phrases)
    return made


def pixels(server: ComfyServer, run: Run) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(server.fetch(image)))) for image in run.outputs["save"]["images"]]


def test_two_nodes_and_three_wires_give_masks(server: ComfyServer, plain: Prompt) -> None:
    before = pixels(server, server.run(plain))
    prompt = with_masks(plain)
    run = server.run(prompt)
    after = pixels(server, run)
    assert len(after) == 2 and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    (table,) = run.outputs["masks"]["goca_masks"]
    assert table["phrases"] == ["red circle", "blue square"]
    assert len(table["area"]) == 2 and min(min(areas) for areas in table["area"]) > 0
    (shown,) = run.outputs["masks"]["goca_view"]
    assert {"red", "circle", "grass"} <= {word["text"] for word in shown["words"]["words"]}

    # The whole chain, with the prompt in Encode Prompt, gives the same masks.
    chain = copy.deepcopy(prompt)
    chain["positive"]["class_type"] = "GOCA_EncodePrompt"
    chain["collect"] = node("GOCA_CollectAttention", recorder=["record", 1], latent=["sampler", 0])
    chain["maps"] = node("GOCA_Aggregate", attention=["collect", 0], head_method="auto", layer_method="auto")
    chain["masks"]["inputs"]["source"] = ["maps", 0]
    assert server.run(chain).outputs["masks"]["goca_masks"] == [table]

    # The recorder goes into the other nodes too.
    more = {**prompt}
    more["heat"] = node(
        "GOCA_Overlay", image=["decode", 0], source=["record", 1], latent=["sampler", 0], labels="", opacity=0.5
    )
    more["file"] = node(
        "GOCA_SaveAttention",
        attention=["record", 1],
        latent=["sampler", 0],
        filename_prefix="plain",
        precision="float32",
    )
    more["maps"] = node(
        "GOCA_Aggregate", attention=["record", 1], latent=["sampler", 0], head_method="auto", layer_method="auto"
    )
    more["refined"] = node(
        "GOCA_Refine", source=["record", 1], latent=["sampler", 0], image=["decode", 0], method="guided filter",
        **{"method.radius": 0, "method.eps": 0.01},
    )  # fmt: skip
    more["from maps"] = node("GOCA_MaskFromTokens", source=["maps", 0], phrases="red circle\nblue square")
    more["from refined"] = node("GOCA_MaskFromTokens", source=["refined", 0], phrases="red circle\nblue square")
    outputs = server.run(more).outputs
    assert outputs["from maps"]["goca_masks"] == [table]
    assert outputs["from refined"]["goca_masks"][0]["phrases"] == table["phrases"]
    assert len(outputs["heat"]["images"]) == 2
    (name,) = outputs["file"]["text"]
    assert (server.output / "goca" / name.removeprefix("output/")).is_file()


def test_words_stay_through_nodes_of_the_graph(server: ComfyServer, plain: Prompt) -> None:
    """Two prompts joined, in a part of the sampling, with the other one combined."""
    plain["other"] = node("CLIPTextEncode", clip=["loader", 1], text="a green star")
    plain["joined"] = node("ConditioningConcat", conditioning_to=["positive", 0], conditioning_from=["other", 0])
    plain["range"] = node("ConditioningSetTimestepRange", conditioning=["joined", 0], start=0.0, end=1.0)
    plain["sampler"]["inputs"]["positive"] = ["range", 0]
    run = server.run(with_masks(plain, "circle\ngreen star"))
    (table,) = run.outputs["masks"]["goca_masks"]
    assert table["phrases"] == ["circle", "green star"]


def test_what_is_missing_is_said(server: ComfyServer, plain: Prompt) -> None:
    prompt = with_masks(plain)
    del prompt["masks"]["inputs"]["latent"]
    with pytest.raises(NodeError, match="connect the LATENT output of the sampler to latent"):
        server.run(prompt)
    with pytest.raises(NodeError, match='"dog" is not in the prompt, whose words are: red, circle'):
        server.run(with_masks(plain, "dog"))
    prompt = with_masks(plain)
    prompt["words"] = node("GOCA_Words", clip=["loader", 1], text="a blue square and a red circle on grass")
    prompt["masks"]["inputs"]["words"] = ["words", 0]
    with pytest.raises(NodeError, match="belong to another prompt"):
        server.run(prompt)
