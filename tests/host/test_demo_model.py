"""The bundled model in the host, and the script that trains it."""

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

from goca_core.demo.scenes import draw

from .device import ACCELERATED, EXACT, HALF

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "demo" / "goca_demo.safetensors"
SCRIPT = ROOT / "scripts" / "demo_model" / "train.py"


@pytest.fixture(scope="module")
def demo(pack: ModuleType) -> SimpleNamespace:
    module = sys.modules[f"{pack.__name__}.goca_core.capture.demo_model"]
    model, clip, vae = module.load()
    return SimpleNamespace(module=module, model=model, clip=clip, vae=vae)


def encode(demo: SimpleNamespace, text: str) -> list:
    return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(text))


def test_weights_are_small_and_whole(demo: SimpleNamespace) -> None:
    assert WEIGHTS.stat().st_size <= 16e6
    with safe_open(WEIGHTS, framework="pt") as stored:
        assert int(stored.metadata()["step"]) >= 6000
        assert all(bool(torch.isfinite(stored.get_tensor(name).float()).all()) for name in stored.keys())  # noqa: SIM118


def test_it_is_no_inpaint_model(demo: SimpleNamespace) -> None:
    assert demo.model.model.concat_keys == ()
    assert demo.model.model.latent_format.latent_channels == 12


def test_unknown_words_are_harmless(demo: SimpleNamespace) -> None:
    assert torch.isfinite(encode(demo, "a zebra playing chess")[0][0]).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (47, 81)])
def test_pictures_survive_the_vae(demo: SimpleNamespace, size: tuple[int, int]) -> None:
    picture = torch.from_numpy(draw(3, *size).image)[None].float() / 255
    latent = demo.vae.encode(picture)
    height, width = (side // 2 * 2 for side in size)
    assert latent.shape == (1, 12, height // 2, width // 2)
    # The host crops odd pictures around their middle.
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    # On a GPU, ComfyUI computes it in bfloat16.
    near = EXACT if demo.vae.vae_dtype == torch.float32 else HALF
    torch.testing.assert_close(
        demo.vae.decode(latent), picture[:, top : top + height, left : left + width], atol=near, rtol=0
    )


def test_the_host_samples_it_and_pictures_obey_the_words(host: SimpleNamespace, demo: SimpleNamespace) -> None:
    """Seen by colour alone: a red thing where red was asked for, on a ground of the right colour."""
    empty = host.nodes.EmptyLatentImage().generate(64, 64, 4)[0]
    with torch.inference_mode():
        latent = host.nodes.common_ksampler(
            demo.model, 5, 12, 4.0, "dpmpp_2m", "karras", encode(demo, "a red circle on grass"), encode(demo, ""), empty
        )[0]
        pictures = demo.vae.decode(latent["samples"]).numpy()
    assert pictures.shape == (4, 64, 64, 3)
    red, green, blue = np.moveaxis(pictures, -1, 0)
    is_red = (red > 0.6) & (green < 0.4) & (blue < 0.4)
    is_grass = (green > red) & (green > blue)
    share = is_red.mean((1, 2))
    assert ((share > 0.02) & (share < 0.5)).sum() >= 3
    assert (is_grass.mean((1, 2)) > 0.4).sum() >= 3


def test_missing_weights_are_named(demo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sys.modules[f"{demo.module.__package__}.weights"]
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(weights.ComfyUIError, match=r"checkpoint is missing: .*gone\.safetensors"):
        demo.module.load(gone)
    monkeypatch.setattr(weights, "DEMO_WEIGHTS", gone)
    with pytest.raises(
        weights.ComfyUIError, match=r"demo model's weights are missing: .*gone\.safetensors.*demo_model/train"
    ):
        demo.module.load(gone)


def train(folder: Path, *more: str) -> str:
    command = [sys.executable, str(SCRIPT), "--smoke", "--batch", "4", "--warmup", "5", "--folder", str(folder), *more]
    # It takes a GPU if it sees one.
    environment = os.environ if ACCELERATED else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_training_learns_saves_and_resumes(demo: SimpleNamespace, tmp_path: Path) -> None:
    before = WEIGHTS.read_bytes()
    # Twenty steps at once, and the same twenty with a stop on the way, end at the same weights.
    legs = "--steps", "14", "--repair", "6"
    train(tmp_path / "whole", *legs)
    train(tmp_path / "parts", *legs, "--until", "16")
    assert "resumed at step 16" in train(tmp_path / "parts", *legs, "--resume")
    with (
        safe_open(tmp_path / "whole" / "smoke.safetensors", "pt") as whole,
        safe_open(tmp_path / "parts" / "smoke.safetensors", "pt") as parts,
    ):
        assert set(whole.keys()) == set(parts.keys())
        for name in whole.keys():  # noqa: SIM118
            torch.testing.assert_close(whole.get_tensor(name), parts.get_tensor(name), atol=2e-3, rtol=0)
    losses = np.array(json.loads((tmp_path / "whole" / "loss.json").read_text()))
    assert len(losses) == 20 and losses[-5:].mean() < losses[:3].mean()
    assert WEIGHTS.read_bytes() == before, "a smoke run wrote into the pack"
    model, _, _ = demo.module.load(tmp_path / "whole" / "smoke.safetensors")
    assert model.model.diffusion_model is not None
