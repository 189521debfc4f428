"""The bundled models in ComfyUI, and the script that trains them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from goca_core.demo.scenes import draw
from goca_core.demo.storage import expand

from .device import ACCELERATED, EXACT, HALF

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "demo_model" / "train.py"


STEPS = {"shapes": 6000, "things": 1800}


@pytest.fixture(scope="module", params=["shapes", "things"])
def demo(pack: ModuleType, request: pytest.FixtureRequest) -> SimpleNamespace:
    module = sys.modules[f"{pack.__name__}.goca_core.capture.demo_model"]
    model, clip, vae = module.load_scenes(request.param)
    file = sys.modules[f"{pack.__name__}.goca_core.capture.weights"].BUNDLED[request.param]
    return SimpleNamespace(module=module, kind=request.param, file=file, model=model, clip=clip, vae=vae)


def encode(demo: SimpleNamespace, text: str) -> list:
    return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(text))


def test_weights_are_small_and_whole(demo: SimpleNamespace) -> None:
    assert demo.file.stat().st_size <= 16e6
    with safe_open(demo.file, framework="pt") as stored:
        assert int(stored.metadata()["step"]) >= STEPS[demo.kind]
        assert all(bool(torch.isfinite(stored.get_tensor(name).float()).all()) for name in stored.keys())  # noqa: SIM118


def test_it_is_no_inpaint_model(demo: SimpleNamespace) -> None:
    assert demo.model.model.concat_keys == ()
    form = demo.model.model.latent_format
    assert (form.latent_channels, form.spacial_downscale_ratio) == {"shapes": (12, 2), "things": (48, 4)}[demo.kind]


def test_the_node_loads_either_and_old_graphs_keep_theirs(host: SimpleNamespace, pack: ModuleType) -> None:
    """A graph in API format without the input has the model of shapes; a new node in the editor has that of things."""
    node = host.nodes.NODE_CLASS_MAPPINGS["GOCA_DemoModel"]
    channels = [node.execute(*given).result[2].latent_channels for given in ((), ("shapes",), ("things",))]
    assert channels == [12, 12, 48]
    assert node.INPUT_TYPES()["optional"]["scenes"][1]["default"] == "things" and not node.INPUT_TYPES()["required"]
    weights = sys.modules[f"{pack.__name__}.goca_core.capture.weights"]
    with pytest.raises(weights.ComfyUIError, match='no demo model of "people"; choose things or shapes'):
        node.execute("people")


def test_unknown_words_are_harmless(demo: SimpleNamespace) -> None:
    assert torch.isfinite(encode(demo, "a zebra playing chess")[0][0]).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (47, 81)])
def test_images_survive_the_vae(demo: SimpleNamespace, size: tuple[int, int]) -> None:
    image = torch.from_numpy(draw(3, *size, kind=demo.kind).image)[None].float() / 255
    latent = demo.vae.encode(image)
    cell = demo.vae.downscale_ratio
    height, width = (side // cell * cell for side in size)
    assert latent.shape == (1, 3 * cell**2, height // cell, width // cell)
    # ComfyUI crops odd images around their middle.
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    # On a GPU, ComfyUI computes it in bfloat16.
    near = EXACT if demo.vae.vae_dtype == torch.float32 else HALF
    torch.testing.assert_close(
        demo.vae.decode(latent), image[:, top : top + height, left : left + width], atol=near, rtol=0
    )


def test_comfyui_samples_it_and_images_obey_the_words(host: SimpleNamespace, demo: SimpleNamespace) -> None:
    """Seen by colour alone: a red thing where red was asked for, on a background of the right colour."""
    side, count, steps, name = {"shapes": (64, 4, 12, "circle"), "things": (128, 2, 8, "balloon")}[demo.kind]
    empty = host.nodes.EmptyLatentImage().generate(side, side, count)[0]
    prompts = encode(demo, f"a red {name} on grass"), encode(demo, "")
    with torch.inference_mode():
        latent = host.nodes.common_ksampler(demo.model, 5, steps, 4.0, "dpmpp_2m", "karras", *prompts, empty)[0]
        images = demo.vae.decode(latent["samples"]).numpy()
    assert images.shape == (count, side, side, 3)
    red, green, blue = np.moveaxis(images, -1, 0)
    is_red = (red > 0.6) & (green < 0.4) & (blue < 0.4)
    is_grass = (green > red) & (green > blue)
    share = is_red.mean((1, 2))
    assert ((share > 0.02) & (share < 0.5)).sum() >= count / 2 + 1
    assert (is_grass.mean((1, 2)) > 0.4).sum() >= count / 2 + 1


def test_missing_weights_are_named(demo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sys.modules[f"{demo.module.__package__}.weights"]
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(weights.ComfyUIError, match=r"checkpoint is missing: .*gone\.safetensors"):
        demo.module.load(gone)
    monkeypatch.setitem(weights.BUNDLED, demo.kind, gone)
    sentence = rf"demo model's weights are missing: .*gone\.safetensors.*demo_model/train\.py --kind {demo.kind}\."
    with pytest.raises(weights.ComfyUIError, match=sentence):
        demo.module.load_scenes(demo.kind)


def train(folder: Path, *more: str) -> str:
    command = [sys.executable, str(SCRIPT), "--smoke", "--batch", "4", "--warmup", "5", "--folder", str(folder), *more]
    # It takes a GPU if it sees one.
    environment = os.environ if ACCELERATED else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_training_learns_saves_and_resumes(demo: SimpleNamespace, tmp_path: Path) -> None:
    before = demo.file.read_bytes()
    # All steps at once, and the same steps with a stop on the way, end at the same weights: the data is the same.
    steps, count, stop = {"shapes": (("--steps", "8", "--repair", "4"), 12, 9), "things": (("--steps", "20"), 20, 16)}[
        demo.kind
    ]
    legs = "--kind", demo.kind, *steps
    train(tmp_path / "whole", *legs)
    train(tmp_path / "parts", *legs, "--until", str(stop))
    assert f"resumed at step {stop}" in train(tmp_path / "parts", *legs, "--resume")
    whole, parts = (expand(load_file(tmp_path / name / "smoke.safetensors")) for name in ("whole", "parts"))
    assert set(whole) == set(parts)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], atol=2e-3, rtol=0)
    losses = np.array(json.loads((tmp_path / "whole" / "loss.json").read_text()))
    assert len(losses) == count and losses[-4:].mean() < losses[:3].mean()
    assert demo.file.read_bytes() == before, "a smoke run wrote into the pack"
    model, _, _ = demo.module.load(tmp_path / "whole" / "smoke.safetensors")
    assert model.model.diffusion_model is not None
