"""The graphs in which masks have prompts of their own run on a real server."""

from __future__ import annotations

import numpy as np

from scripts.comfy_server import ComfyServer

from .test_edit_graphs import saved, short, steady, weights
from .test_graphs import by_type

__all__ = ["weights"]  # a fixture that every test here uses

# -- in one pass ------------------------------------------------------------------------------------------------------


def test_in_one_pass(server: ComfyServer) -> None:
    prompt = short("Regional prompts in one pass", 6)
    run = steady(server, prompt, "Plain image")
    (told,) = run.outputs[by_type(prompt, "GOCA_CollectMasks")]["text"]
    first, second, rest = told.splitlines()
    assert first.startswith("red circle (") and first.endswith("a yellow circle and a blue square on grass")
    assert second.startswith("blue square (") and second.endswith("the base prompt") and "everything else" in rest
    plain, regional = (saved(server, run, prompt, title) for title in ("Plain image", "Image"))
    assert plain.shape == regional.shape == (64, 64, 3)
    # Other phrases sample that image again, and not the plain one; without prompts it is the plain one, bit for bit.
    inputs = prompt[by_type(prompt, "GOCA_RegionalPass")]["inputs"]
    inputs["prompts"] = ""
    run = server.run(prompt)
    assert by_type(prompt, "KSampler", "The prompt alone") in run.cached
    assert np.array_equal(saved(server, run, prompt, "Image"), plain)


# -- into other nodes -------------------------------------------------------------------------------------------------


def test_masks_into_the_nodes_of_comfyui(server: ComfyServer) -> None:
    """The same image as by Regional Prompt with the same prompts: the base has what the masks leave over."""
    prompt = short("Masks into other nodes")
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
