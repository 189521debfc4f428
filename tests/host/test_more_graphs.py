"""The graphs that lead masks into other nodes run on a real server, and do to the image what they say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from scripts.comfy_server import ComfyServer

from .older import need
from .test_edit_graphs import saved, short, weights
from .test_graphs import by_type, images_of

__all__ = ["weights"]  # a fixture that every test here uses


@pytest.fixture(autouse=True)
def new_enough(server: ComfyServer) -> None:
    need("CropByBBoxes" in server.object_info(), "Crop By Bounding Boxes")


def test_detailer_by_word(server: ComfyServer) -> None:
    """What is sampled again is larger than what is replaced; outside of the mask no pixel changes."""
    prompt = short("Detailer by word", 6)
    crop = by_type(prompt, "CropByBBoxes")
    prompt["crop"] = {"class_type": "PreviewImage", "inputs": {"images": [crop, 0]}, "_meta": {"title": "Crop"}}
    prompt["mask"] = {"class_type": "MaskPreview", "inputs": {"mask": [by_type(prompt, "GrowMask"), 0]}, "_meta": {}}
    run = server.run(prompt)
    first, second = (saved(server, run, prompt, f"{n} image") for n in ("First", "Second"))
    (shown,), (cut,) = images_of(server, run, "mask"), images_of(server, run, "crop")
    inside = shown[..., 0] > 0
    assert 0 < inside.mean() < 0.9, "the mask is empty or everything, so nothing is shown"
    assert np.abs(first - second)[~inside].max() == 0
    assert np.abs(first - second)[inside].mean() > 1, "nothing was sampled in the mask"
    # The crop is the box with its margin, a square, not scaled: a part of the image.
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    side = max(len(range(rows[0], rows[-1] + 1)), len(range(columns[0], columns[-1] + 1)))
    assert cut.shape[0] == cut.shape[1] == min(int(np.ceil(side * 1.5)), 64)
    places = [
        (y, x)
        for y in range(65 - cut.shape[0])
        for x in range(65 - cut.shape[1])
        if np.array_equal(first[y : y + cut.shape[0], x : x + cut.shape[1]], cut)
    ]
    assert len(places) == 1
    # A thing that is not there: the image stays as it is, without an error.
    prompt[by_type(prompt, "GrowMask")]["inputs"]["mask"] = ["none", 0]
    prompt["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}, "_meta": {}}
    run = server.run(prompt)
    assert np.array_equal(saved(server, run, prompt, "Second image"), first)


def test_denoise_by_word(server: ComfyServer) -> None:
    """The more a word is denoised, the more its pixels change; those of no word stay."""
    prompt = short("Denoise by word", 10)
    run = server.run(prompt)
    first, second = (saved(server, run, prompt, f"{n} image") for n in ("First", "Second"))
    (shown,) = images_of(server, run, by_type(prompt, "MaskPreview"))
    values = shown[..., 0] / 255
    assert set(np.unique(values.round(1))) == {0.0, 0.5, 1.0}
    moved = np.abs(first - second).mean(-1)
    # Away from the edges: a cell of the latent is two pixels, and its wavelet reaches a little further.
    edge = ndimage.maximum_filter(values, 5) != ndimage.minimum_filter(values, 5)
    whole, half, nothing = (moved[(values.round(1) == level) & ~edge].mean() for level in (1.0, 0.5, 0.0))
    assert whole > 2 * half, (whole, half, nothing)
    assert half >= nothing and nothing < 4, (whole, half, nothing)


def test_layers_by_word(server: ComfyServer) -> None:
    """One transparent image for each phrase; laid over one another, the layers are the image."""
    prompt = short("Layers by word")
    run = server.run(prompt)
    (image,) = images_of(server, run, by_type(prompt, "SaveImage", "Image"))
    layers = images_of(server, run, by_type(prompt, "SaveImage", "Layers"))
    (background,) = images_of(server, run, by_type(prompt, "SaveImage", "Layer of the background"))
    assert [layer.shape for layer in (*layers, background)] == [(64, 64, 4)] * 3
    alphas = np.stack([layer[..., 3] for layer in (*layers, background)])
    assert set(np.unique(alphas)) == {0, 255} and (alphas.astype(int).sum(0) == 255).all()
    canvas = Image.new("RGBA", (64, 64))
    for layer in (background, *layers):
        canvas.alpha_composite(Image.fromarray(layer))
    assert np.array_equal(np.asarray(canvas)[..., :3], image)
    (table,) = run.outputs[by_type(prompt, "GOCA_MaskFromTokens", "Mask From Tokens (GoCA)")]["goca_masks"]
    assert table["area"][0] == pytest.approx([(alpha > 0).mean() for alpha in alphas[:2]], abs=1e-4)
    # The mask of the car alone, over a plain colour.
    entry = run.outputs[by_type(prompt, "SaveImage", "The car over another background")]["images"][0]
    over = np.asarray(Image.open(io.BytesIO(server.fetch(entry))).convert("RGB")).astype(int)
    plain = (np.abs(over - np.array([0x3C, 0x78, 0xD8])).max(-1) <= 1).mean()
    kept = (np.abs(over - image.astype(int)[..., :3]).max(-1) <= 1).mean()
    assert plain > 0.3 and kept > 0.02 and plain + kept > 0.98
