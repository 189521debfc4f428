"""The graphs in which masks have prompts of their own run on a real server."""

from __future__ import annotations

import numpy as np
import pytest

from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt

from .test_edit_graphs import saved, short, steady, weights, with_demo_model
from .test_graphs import by_type

__all__ = ["weights"]  # a fixture that every test here uses

SHAPES = "a red circle and a blue square on grass", "red circle\nblue square"


def pictures_of_any_model(prompt: Prompt) -> Prompt:
    for node in prompt.values():
        if node["class_type"] == "EmptySD3LatentImage":
            node["class_type"] = "EmptyLatentImage"
    return prompt


def on_the_demo_model(name: str, steps: int = 3, phrases: str = SHAPES[1]) -> Prompt:
    """A graph for a checkpoint, with the demo model in its place; Flux's latents have more channels than it.

    What it takes for a cat may be nothing or everything; words that it knows have a place.
    """
    prompt = pictures_of_any_model(short(name, steps))
    prompt[by_type(prompt, "GOCA_EncodePrompt", "Prompt")]["inputs"]["text"] = SHAPES[0]
    assert demo.put(prompt, phrases, ["phrases"]) == 1
    return with_demo_model(prompt)


# -- in one pass ------------------------------------------------------------------------------------------------------


def test_in_one_pass(server: ComfyServer) -> None:
    prompt = short("regional_one_pass_demo", 6)
    run = steady(server, prompt, "Plain image")
    (told,) = run.outputs[by_type(prompt, "GOCA_CollectMasks")]["text"]
    first, second, rest = told.splitlines()
    assert first.startswith("red circle (") and first.endswith("a yellow circle and a blue square on grass")
    assert second.startswith("blue square (") and second.endswith("the base prompt") and "everything else" in rest
    plain, regional = (saved(server, run, prompt, title) for title in ("Plain image", "Image"))
    assert plain.shape == regional.shape == (64, 64, 3)
    # Other phrases paint that picture again, and not the plain one; without prompts it is the plain one, bit for bit.
    inputs = prompt[by_type(prompt, "GOCA_RegionalPass")]["inputs"]
    inputs["prompts"] = ""
    run = server.run(prompt)
    assert by_type(prompt, "KSampler", "The prompt alone") in run.cached
    assert np.array_equal(saved(server, run, prompt, "Image"), plain)


@pytest.mark.parametrize("kind", ["sd15_sdxl", "flux"])
def test_in_one_pass_with_another_model(server: ComfyServer, kind: str) -> None:
    prompt = on_the_demo_model(f"regional_one_pass_{kind}")
    prompt[by_type(prompt, "GOCA_RegionalPass")]["inputs"]["prompts"] = "a yellow circle\na green square"
    run = server.run(prompt)
    assert saved(server, run, prompt, "Image").shape == (64, 64, 3)
    assert "a green square" in run.outputs[by_type(prompt, "GOCA_CollectMasks")]["text"][0]


# -- in two passes ----------------------------------------------------------------------------------------------------


def test_two_passes_with_flux(server: ComfyServer) -> None:
    prompt = on_the_demo_model("regional_prompts_flux")
    assert prompt[by_type(prompt, "GOCA_RegionalPrompt")]["inputs"]["conditioning"] == [
        by_type(prompt, "FluxGuidance"),
        0,
    ]
    prompt[by_type(prompt, "GOCA_RegionalPrompt")]["inputs"]["prompts"] = "red circle: a yellow circle"
    assert saved(server, server.run(prompt), prompt, "Second image").shape == (64, 64, 3)


def test_replace_by_word_with_flux(server: ComfyServer) -> None:
    prompt = on_the_demo_model("replace_by_word_flux", 2, "blue square")
    prompt[by_type(prompt, "GrowMask")]["inputs"]["expand"] = 2
    prompt[by_type(prompt, "ImageBlur")]["inputs"] |= {"blur_radius": 2, "sigma": 1.0}
    assert saved(server, server.run(prompt), prompt, "Second image").shape == (64, 64, 3)


# -- into other nodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["demo", "sd15_sdxl", "flux"])
def test_masks_into_the_nodes_of_the_host(server: ComfyServer, kind: str) -> None:
    """The same picture as by Regional Prompt with the same prompts: the base has what the masks leave over."""
    name = f"masks_into_other_nodes_{kind}"
    prompt = short(name) if kind == "demo" else on_the_demo_model(name)
    run = server.run(prompt)
    second = saved(server, run, prompt, "Second image")
    texts = [prompt[by_type(prompt, "CLIPTextEncode", f"Prompt of mask {n}")]["inputs"]["text"] for n in (1, 2)]
    masks = by_type(prompt, "GOCA_MaskFromTokens")
    base = prompt[by_type(prompt, "ConditioningSetDefaultCombine")]["inputs"]["cond_DEFAULT"]
    encode = prompt[by_type(prompt, "GOCA_EncodePrompt", "Prompt")]["inputs"]["clip"]
    regional = {
        "conditioning": base,
        "clip": encode,
        "masks": [masks, 0],
        "labels": [masks, 2],
        "prompts": "\n".join(texts),
    }
    rest = {"strength": 1.0, "feather": 0.0, "start_percent": 0.0, "set_cond_area": "default"}
    prompt["900"] = {"class_type": "GOCA_RegionalPrompt", "inputs": {**regional, **rest}, "_meta": {"title": "Ours"}}
    prompt[by_type(prompt, "KSampler", "Second pass")]["inputs"]["positive"] = ["900", 0]
    ours = saved(server, server.run(prompt), prompt, "Second image")
    assert np.abs(ours - second).max() <= 2
    assert np.abs(saved(server, run, prompt, "First image") - second).mean() > 1, "the prompts changed nothing"


# -- semantic guidance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15_sdxl", "flux"])
def test_semantic_guidance_with_another_model(server: ComfyServer, kind: str) -> None:
    prompt = with_demo_model(pictures_of_any_model(short(f"semantic_cfg_{kind}", 2)))
    if kind == "flux":
        # Both prompts at one number, and a cfg at which there is something to weigh.
        guidance = {node["inputs"]["guidance"] for node in prompt.values() if node["class_type"] == "FluxGuidance"}
        scales = {node["inputs"]["cfg"] for node in prompt.values() if node["class_type"] == "KSampler"}
        assert len(guidance) == len(scales) == 1 and min(scales) > 1
        for node in prompt.values():
            if node["class_type"] == "KSampler":
                sources = [prompt[node["inputs"][name][0]]["class_type"] for name in ("positive", "negative")]
                assert sources == ["FluxGuidance"] * 2
    run = server.run(prompt)
    plain, ours = (saved(server, run, prompt, title) for title in ("Plain guidance", "GoCA's regions"))
    assert plain.shape == (64, 64, 3) and not np.array_equal(plain, ours)
