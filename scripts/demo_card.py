"""Make the images of the demo model's card (loss curve, contact sheet), of the README, and the template thumbnails.

python scripts/demo_card.py        needs matplotlib; reads training/loss.json, writes to demo/, docs/images/ and workflows/
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from boot import ROOT, boot, use
from demo_scenes import Demo

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
README = ("a red circle and a blue square on grass", "red circle\nblue square", 3)


@dataclass(frozen=True)
class Job:
    """What one example graph generates. ``look_again``: make the masks with Segment Image from the finished image."""

    prompt: str
    phrases: str
    seed: int = 3
    look_again: bool = False
    refine: str = ""


TWO = Job("a red circle and a blue square on grass", "red circle\nblue square")
OTHER = Job("a yellow star and a purple heart on snow", "yellow star\npurple heart")
SEGMENTED = Job("a yellow star and a blue heart on snow", "blue heart\nyellow star", look_again=True)
SHARPER = Job("a yellow star and a purple heart on asphalt", "yellow star\npurple heart", 1, refine="pamr")
OVERLAY, HEAT = 0, 1
THUMBNAILS = {
    "masks_from_words_demo": (TWO, OVERLAY),
    "masks_from_words_sd15_sdxl": (TWO, HEAT),
    "masks_from_words_flux": (TWO, HEAT),
    "masks_from_words_wan": (TWO, OVERLAY),
    "save_and_reuse_attention_demo": (OTHER, OVERLAY),
    "segment_photo_demo": (SEGMENTED, OVERLAY),
    "segment_photo_sd15_sdxl": (SEGMENTED, HEAT),
    "segment_photo_flux": (SEGMENTED, HEAT),
    "sharper_masks_demo": (SHARPER, OVERLAY),
}


def contact_sheet(demo: Demo, path: Path) -> None:
    pictures = [picture for prompt in PROMPTS for picture in demo.paint(prompt, SEEDS)[0]]
    captions = [prompt for prompt in PROMPTS for _ in SEEDS]
    sheet = use("goca_core.picture.drawing").contact_sheet(pictures, captions, columns=6, scale=3)
    sheet.save(path, optimize=True)


def result(demo: Demo, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks over the image, and the heat map of every word."""
    pipeline, show = use("goca_core.pipeline"), use("goca_core.picture.batch")
    image, attention = demo.paint(job.prompt, (job.seed,))
    if job.look_again:
        attention = demo.segment(image, job.prompt)
    scores = pipeline.as_scores(attention)
    if job.refine:
        scores = pipeline.refined(scores, use("goca_core.refine.methods").REFINEMENTS[job.refine](), image)
    cut = pipeline.make_masks(scores, pipeline.Request(job.phrases))
    overlay = show.overlay_batch(image, show.flatten(cut.masks), "\n".join(cut.labels), 0.55)[0]
    return overlay, show.overlay_batch(image, attention, "", 0.55)[0]


def readme_picture(demo: Demo, path: Path) -> None:
    """Top row: the image and its masks. Bottom row: all masks over the image, and the heat map of each mask."""
    picture, pipeline = use("goca_core.picture.drawing"), use("goca_core.pipeline")
    prompt, phrases, seed = README
    image, attention = demo.paint(prompt, (seed,))
    cut = pipeline.make_masks(attention, pipeline.Request(phrases))
    scores, _ = pipeline.word_scores(pipeline.as_scores(attention), phrases)
    masks = [mask[..., None].expand(-1, -1, 3) for mask in cut.masks[0]]
    panels = [image[0], *masks, picture.overlay(image[0], cut.masks[0], alpha=0.55, scale=1)]
    panels += [picture.heat(score, scale=1) for score in scores[0]]
    names = [prompt, *cut.labels, "all masks", *(f"attention to {label}" for label in cut.labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.contact_sheet(panels, names, columns=1 + len(masks), scale=5).save(path, optimize=True)


def thumbnails(demo: Demo) -> None:
    for name, (job, kind) in THUMBNAILS.items():
        shown = use("goca_core.picture.drawing").contact_sheet([result(demo, job)[kind]], scale=1)
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
    demo = Demo()
    loss_curve(json.loads(source.read_text()), ROOT / "demo" / "loss.png")
    contact_sheet(demo, ROOT / "demo" / "contact_sheet.png")
    readme_picture(demo, ROOT / "docs" / "images" / "demo.png")
    thumbnails(demo)


if __name__ == "__main__":
    main()
