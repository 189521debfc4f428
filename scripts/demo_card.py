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
from PIL import Image

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
README = ("a red circle, a yellow star and a blue square on grass", "red circle\nyellow star\nblue square", 3)
TWO = ("a red circle and a blue square on grass", "red circle\nblue square", 3)
OTHER = ("a yellow star and a purple heart on snow", "yellow star\npurple heart", 3)


class Painter:
    """The demo model, recording as its nodes do."""

    def __init__(self) -> None:
        self.recorder, self.tokens = use("goca_core.capture.recorder"), use("goca_core.capture.tokens")
        self.model, self.clip, self.vae = use("nodes.demo_model").load()

    def encode(self, prompt: str) -> list:
        words = self.tokens.word_map(self.clip, prompt)
        return self.tokens.attach(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt)), words)

    def paint(self, prompt: str, seeds: tuple[int, ...]) -> tuple:
        """Pictures [B, H, W, 3], one for each seed, and what was recorded."""
        import comfy.sample

        latent = torch.zeros(len(seeds), 12, 32, 32)
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])
        model, recorder = self.recorder.record(self.model, self.recorder.Window())
        sampling = (noise, 20, 4.0, "dpmpp_2m", "karras", self.encode(prompt), self.encode(""), latent)
        with torch.inference_mode():
            samples = comfy.sample.sample(model, *sampling, disable_pbar=True, seed=1)
            return self.vae.decode(samples), recorder.collect(samples)


def contact_sheet(painter: Painter, path: Path) -> None:
    pictures = [picture for prompt in PROMPTS for picture in painter.paint(prompt, SEEDS)[0]]
    captions = [prompt for prompt in PROMPTS for _ in SEEDS]
    sheet = use("goca_core.picture").contact_sheet(pictures, captions, columns=6, scale=3)
    sheet.save(path, optimize=True)


def result(painter: Painter, prompt: str, phrases: str, seed: int) -> list:
    """A picture, its masks, the masks over it, and the heat map of every word."""
    pipeline, show = use("goca_core.pipeline"), use("goca_core.show")
    image, attention = painter.paint(prompt, (seed,))
    cut = pipeline.cut(attention, pipeline.Request(phrases))
    masks = [mask[..., None].expand(-1, -1, 3) for mask in cut.masks[0]]
    overlay = show.overlay_batch(image, show.flatten(cut.masks), "\n".join(cut.labels), 0.55)[0]
    heat = show.overlay_batch(image, attention, "", 0.55)[0]
    return [image[0], *masks, overlay, heat]


def readme_picture(painter: Painter, path: Path) -> None:
    phrases = README[1].splitlines()
    *panels, heat = result(painter, *README)
    sheet = use("goca_core.picture").contact_sheet(
        panels, [README[0], *phrases, "all masks"], columns=len(panels), scale=4
    )
    heat = use("goca_core.picture").contact_sheet([heat], scale=1)
    heat = heat.resize((sheet.width, round(heat.height * sheet.width / heat.width)))
    whole = Image.new("RGB", (sheet.width, sheet.height + heat.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(heat, (0, sheet.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, optimize=True)


def thumbnail(painter: Painter, name: str, which: int, prompt: str, phrases: str, seed: int) -> None:
    shown = use("goca_core.picture").contact_sheet([result(painter, prompt, phrases, seed)[which]], scale=1)
    shown.thumbnail((400, 400))
    shown.save(ROOT / "workflows" / f"{name}.jpg", quality=88)


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
    painter = Painter()
    loss_curve(json.loads(source.read_text()), ROOT / "demo" / "loss.png")
    contact_sheet(painter, ROOT / "demo" / "contact_sheet.png")
    readme_picture(painter, ROOT / "docs" / "images" / "demo.png")
    thumbnail(painter, "masks_from_words_demo", -2, *TWO)
    thumbnail(painter, "masks_from_words_sd15_sdxl", -1, *TWO)
    thumbnail(painter, "save_and_reuse_attention_demo", -2, *OTHER)


if __name__ == "__main__":
    main()
