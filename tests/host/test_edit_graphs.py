"""The graphs that edit pictures run on a real server, and touch what they should and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt, Run
from tests.conftest import need

from .test_graphs import WEIGHTS, by_type, graph, pictures


@pytest.fixture(autouse=True)
def weights() -> None:
    need(WEIGHTS.is_file(), "the demo model has no weights yet: demo/goca_demo.safetensors")


def short(name: str, steps: int = 4) -> Prompt:
    """What is looked at does not depend on the quality of the pictures."""
    prompt = graph(name)
    assert demo.put(prompt, steps, ["steps"])
    return prompt


def saved(server: ComfyServer, run: Run, prompt: Prompt, title: str) -> np.ndarray:
    (picture,) = pictures(server, run, by_type(prompt, "SaveImage", title))
    return picture.astype(int)


def with_demo_model(prompt: Prompt, side: int = 64) -> Prompt:
    """No checkpoint is at hand, so the demo model takes the loader's place: its outputs have the same order."""
    prompt[by_type(prompt, "CheckpointLoaderSimple")] |= {"class_type": "GOCA_DemoModel", "inputs": {}}
    assert demo.put(prompt, side, ["width", "height"], ["EmptyLatentImage"]) == 2
    return prompt


# -- regional prompts -------------------------------------------------------------------------------------------------


def test_regional_prompts(server: ComfyServer) -> None:
    prompt = short("regional_prompts_demo")
    run = server.run(prompt)
    (told,) = run.outputs[by_type(prompt, "GOCA_RegionalPrompt")]["text"]
    assert told.splitlines()[0].startswith("red circle (") and "a yellow circle and a blue square" in told
    assert told.splitlines()[1].endswith("the base prompt")
    first, second = (saved(server, run, prompt, f"{n} picture") for n in ("First", "Second"))
    assert first.shape == second.shape == (64, 64, 3)
    assert np.abs(first - second).mean() > 1, "the second pass painted the same picture"
    # Without prompts the second pass is the first once more, bit for bit; the first is not painted again.
    prompt[by_type(prompt, "GOCA_RegionalPrompt")]["inputs"]["prompts"] = ""
    run = server.run(prompt)
    assert by_type(prompt, "KSampler", "First pass") in run.cached
    assert np.array_equal(saved(server, run, prompt, "Second picture"), first)


def test_regional_prompts_with_another_model(server: ComfyServer) -> None:
    prompt = with_demo_model(short("regional_prompts_sd15_sdxl", 2))
    run = server.run(prompt)
    assert saved(server, run, prompt, "Second picture").shape == (64, 64, 3)


# -- semantic guidance ------------------------------------------------------------------------------------------------


def test_semantic_guidance(server: ComfyServer) -> None:
    prompt = short("semantic_cfg_demo", 3)
    run = server.run(prompt)
    titles = ("Plain guidance", "S-CFG's regions", "GoCA's regions")
    plain, published, ours = (saved(server, run, prompt, title) for title in titles)
    assert not np.array_equal(plain, published) and not np.array_equal(plain, ours)
    assert not np.array_equal(published, ours)
    demo.put(prompt, 1.0, ["minimum", "maximum"], ["GOCA_SemanticCFG"])
    run = server.run(prompt)
    for title in titles[1:]:
        assert np.array_equal(saved(server, run, prompt, title), plain)
