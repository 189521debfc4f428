"""Draw the pictures of the demo model's card: its loss curve and a contact sheet of what it paints.

python scripts/demo_card.py        needs matplotlib; reads training/loss.json, writes into demo/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from boot import ROOT, boot, use

PROMPTS = (
    "a red circle on grass",
    "a blue square on sand",
    "a green triangle on snow",
    "a yellow star on asphalt",
    "a pink heart on water",
    "a purple cross on grass",
    "a red circle and a blue square on grass",
    "a yellow star and a purple heart on water",
    "an orange cross and a green circle on snow",
    "a pink triangle and a blue star on sand",
    "a purple square and a yellow heart on asphalt",
    "a red star, a blue circle and a green heart on sand",
)
SEEDS = (1, 2)


def contact_sheet(path: Path) -> None:
    import comfy.sample

    demo, picture = use("nodes.demo_model"), use("goca_core.picture")
    model, clip, vae = demo.load()
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    pictures = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            latent = torch.zeros(len(SEEDS), 12, 32, 32)
            noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in SEEDS])
            samples = comfy.sample.sample(
                model, noise, 20, 4.0, "dpmpp_2m", "karras", positive, negative, latent, disable_pbar=True, seed=1
            )
            pictures += list(vae.decode(samples))
    captions = [prompt for prompt in PROMPTS for _ in SEEDS]
    picture.contact_sheet(pictures, captions, columns=6, scale=3).save(path, optimize=True)


def loss_curve(losses: list[float], path: Path) -> None:
    from matplotlib import pyplot

    window = 100
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.semilogy(np.arange(window, len(losses) + 1), smooth, color="#0072b2")
    axes.set(xlabel="step", ylabel=f"v-prediction loss (mean of {window} steps)")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def main() -> None:
    source = ROOT / "training" / "loss.json"
    if not source.is_file():
        sys.exit("There is no training/loss.json: run scripts/train_demo.py first.")
    boot()
    loss_curve(json.loads(source.read_text()), ROOT / "demo" / "loss.png")
    contact_sheet(ROOT / "demo" / "contact_sheet.png")


if __name__ == "__main__":
    main()
