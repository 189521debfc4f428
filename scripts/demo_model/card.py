"""Make the images of the demo model's card (loss curve, contact sheet) and of the README.

python scripts/demo_model/card.py        needs matplotlib; reads training/loss.json, writes to demo/ and docs/images/
python scripts/demo_model/card.py --weights FILE --sheet FILE    only a contact sheet of these weights
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from goca_core import pipeline
from goca_core.picture import drawing
from scripts.boot import boot
from scripts.demo_model.sampler import DemoSampler

ROOT = Path(__file__).resolve().parents[2]
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
THINGS = (
    "a cat and a red balloon on grass",
    "a dog on sand",
    "a panda and a penguin on snow",
    "a house and a tree on grass",
    "a rocket on asphalt",
    "a fox and an apple on wood",
    "a red circle and a blue square on grass",
    "a yellow star and a purple heart on water",
    "a blue car and a yellow balloon on asphalt",
    "an owl, a mushroom and a frog on wood",
    "a duck on water",
    "a robot and a pumpkin on sand",
    "a rabbit, a pink book and a banana on grass",
    "a green umbrella and a lion on sand",
    "a snowman and a train on snow",
)
SEEDS = (1, 2)
README = ("a red circle and a blue square on grass", "red circle\nblue square", 3)


def contact_sheet(sampler: DemoSampler, path: Path) -> None:
    prompts, scale = (PROMPTS, 3) if sampler.side == 64 else (THINGS, 2)
    batches = [sampler.sample(sampler.model, sampler.encode(prompt), SEEDS) for prompt in prompts]
    images = [image for samples in batches for image in sampler.vae.decode(samples)]
    captions = [prompt for prompt in prompts for _ in SEEDS]
    drawing.contact_sheet(images, captions, columns=6, scale=scale).save(path, optimize=True)


def readme_image(sampler: DemoSampler, path: Path) -> None:
    """Top row: the image and its masks. Bottom row: all masks over the image, and the heat map of each mask."""
    prompt, phrases, seed = README
    samples, attention = sampler.record(prompt, (seed,))
    image = sampler.vae.decode(samples)[0]
    result = pipeline.make_masks(attention, pipeline.MaskRequest(phrases))
    scores, _ = pipeline.word_scores(pipeline.as_scoring(attention), phrases)
    masks = [mask[..., None].expand(-1, -1, 3) for mask in result.masks[0]]
    panels = [image, *masks, drawing.overlay(image, result.masks[0], alpha=0.55, scale=1)]
    panels += [drawing.heat(score, scale=1) for score in scores[0]]
    names = [prompt, *result.labels, "all masks", *(f"attention to {label}" for label in result.labels)]
    drawing.contact_sheet(panels, names, columns=1 + len(masks), scale=5).save(path, optimize=True)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="other weights of the demo model, for --sheet")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here, and nothing else")
    options = parser.parse_args()
    if options.sheet:
        boot("--use-pytorch-cross-attention")
        with torch.inference_mode():
            contact_sheet(DemoSampler(options.weights), options.sheet)
        return
    source = ROOT / "training" / "loss.json"
    if not source.is_file():
        sys.exit("There is no training/loss.json. Run scripts/demo_model/train.py first.")
    boot()
    sampler = DemoSampler()
    loss_curve(json.loads(source.read_text()), ROOT / "demo" / "loss.png")
    with torch.inference_mode():
        contact_sheet(sampler, ROOT / "demo" / "contact_sheet.png")
        readme_image(sampler, ROOT / "docs" / "images" / "demo.png")


if __name__ == "__main__":
    main()
