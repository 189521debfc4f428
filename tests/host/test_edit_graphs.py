"""The graphs that edit images run on a real server, and touch what they should and nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt, Run
from tests.conftest import need

from .device import repeated
from .test_graphs import WEIGHTS, ancestors, by_type, graph, images_of


@pytest.fixture(autouse=True)
def weights() -> None:
    need(WEIGHTS.is_file(), "the demo model has no weights yet: demo/goca_demo.safetensors")


def short(name: str, steps: int = 4) -> Prompt:
    """What is checked does not depend on the quality of the images."""
    prompt = graph(name)
    assert demo.put(prompt, steps, ["steps"])
    return prompt


def saved(server: ComfyServer, run: Run, prompt: Prompt, title: str) -> np.ndarray:
    (image,) = images_of(server, run, by_type(prompt, "SaveImage", title))
    return image.astype(int)


def steady(server: ComfyServer, prompt: Prompt, title: str) -> Run:
    """Run a prompt of which an image is compared with this one: made twice, it must be the same (see `device.repeated`)."""
    alone = ancestors(prompt, by_type(prompt, "SaveImage", title))
    other = copy.deepcopy(alone)
    assert demo.put(other, 4321, ["seed"])  # in between, so that the sampler is not cached

    def image() -> torch.Tensor:
        server.run(other)
        return torch.from_numpy(saved(server, server.run(alone), alone, title))

    repeated(image)
    return server.run(prompt)


# -- regional prompts -------------------------------------------------------------------------------------------------


def test_regional_prompts(server: ComfyServer) -> None:
    prompt = short("Regional prompts")
    run = steady(server, prompt, "First image")
    (told,) = run.outputs[by_type(prompt, "GOCA_RegionalPrompt")]["text"]
    assert told.splitlines()[0].startswith("red circle (") and "a yellow circle and a blue square" in told
    assert told.splitlines()[1].endswith("the base prompt")
    first, second = (saved(server, run, prompt, f"{n} image") for n in ("First", "Second"))
    assert first.shape == second.shape == (64, 64, 3)
    assert np.abs(first - second).mean() > 1, "the second pass generated the same image"
    # Without prompts the second pass is the first once more, bit for bit; the first is not sampled again.
    prompt[by_type(prompt, "GOCA_RegionalPrompt")]["inputs"]["prompts"] = ""
    run = server.run(prompt)
    assert by_type(prompt, "KSampler", "First pass") in run.cached
    assert np.array_equal(saved(server, run, prompt, "Second image"), first)


# -- replace by word --------------------------------------------------------------------------------------------------


def changed_only_inside(server: ComfyServer, run: Run, prompt: Prompt) -> None:
    first, second = (saved(server, run, prompt, f"{n} image") for n in ("First", "Second"))
    (shown,) = images_of(server, run, by_type(prompt, "MaskPreview"))
    inside = shown[..., 0] > 0
    assert 0 < inside.mean() < 1, "the mask is empty or everything, so nothing is shown"
    moved = np.abs(first - second).max(-1)
    assert moved[~inside].max() == 0
    assert moved[inside].mean() > 1, "nothing was generated in the mask"


def test_replace_by_word(server: ComfyServer) -> None:
    prompt = short("Replace an object")
    run = server.run(prompt)
    changed_only_inside(server, run, prompt)
    (table,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens")]["goca_masks"]
    (shown,) = images_of(server, run, by_type(prompt, "MaskPreview"))
    assert (shown[..., 0] > 0).mean() > table["area"][0][0], "the mask was not grown"


def test_outside_the_mask_the_sampler_itself_changes_little(server: ComfyServer) -> None:
    """Without the final composite: what is far from the mask is denoised once from the least noise, no more."""
    prompt = short("Replace an object", 12)
    last = by_type(prompt, "SaveImage", "Second image")
    prompt[last]["inputs"]["images"] = [by_type_of_input(prompt, "ImageCompositeMasked", "source"), 0]
    run = server.run(prompt)
    first, second = (saved(server, run, prompt, f"{n} image") for n in ("First", "Second"))
    (shown,) = images_of(server, run, by_type(prompt, "MaskPreview"))
    # A cell of the latent is two pixels, and its wavelet reaches a little further.
    outside = ~ndimage.binary_dilation(shown[..., 0] > 0, iterations=6)
    assert outside.any()
    assert np.abs(first - second)[outside].mean() < 4


def by_type_of_input(prompt: Prompt, kind: str, name: str) -> str:
    source: str = prompt[by_type(prompt, kind)]["inputs"][name][0]
    return source


# -- semantic guidance ------------------------------------------------------------------------------------------------


def test_semantic_guidance(server: ComfyServer) -> None:
    prompt = short("Semantic guidance", 3)
    titles = ("Plain guidance", "S-CFG's regions", "GoCA's regions")
    run = steady(server, prompt, titles[0])
    plain, published, ours = (saved(server, run, prompt, title) for title in titles)
    assert not np.array_equal(plain, published) and not np.array_equal(plain, ours)
    assert not np.array_equal(published, ours)
    demo.put(prompt, 1.0, ["minimum", "maximum"], ["GOCA_SemanticCFG"])
    run = server.run(prompt)
    for title in titles[1:]:
        assert np.array_equal(saved(server, run, prompt, title), plain)
