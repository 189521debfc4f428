"""Make the images of the demo models' card (loss curve, contact sheet) and of the README.

python scripts/demo_model/card.py --loss FILE --curve FILE       the loss curve of a training/loss.json; needs matplotlib
python scripts/demo_model/card.py --weights FILE --sheet FILE    a contact sheet of these weights
python scripts/demo_model/card.py --readme FILE                  the image of the README, with the model of things
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
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import record
from goca_core.capture.weights import BUNDLED
from goca_core.capture.window import Window
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
README = ("a red car and a tree on sand", "red car\ntree", 3)


def contact_sheet(sampler: DemoSampler, path: Path) -> None:
    prompts, scale = (PROMPTS, 3) if sampler.side == 64 else (THINGS, 2)
    batches = [sampler.sample(sampler.model, sampler.encode(prompt), SEEDS) for prompt in prompts]
    images = [image for samples in batches for image in sampler.vae.decode(samples)]
    captions = [prompt for prompt in prompts for _ in SEEDS]
    sheet = drawing.contact_sheet(images, captions, columns=6, scale=scale)
    sheet.quantize(256).save(path, optimize=True)  # a fraction of the size


def readme_image(sampler: DemoSampler, path: Path) -> None:
    """Top row: the image and its masks. Bottom row: all masks over the image, and the heat map of each mask."""
    prompt, phrases, seed = README
    # As Record Attention does it by default.
    model, recorder = record(sampler.model, Window(), RecordOptions(method="auto"))
    samples = sampler.sample(model, sampler.encode(prompt), (seed,))
    attention = recorder.collect(samples)
    image = sampler.vae.decode(samples)[0]
    result = pipeline.make_masks(attention, pipeline.MaskRequest(phrases))
    scores, _ = pipeline.word_scores(pipeline.as_scoring(attention), phrases)
    masks = [mask[..., None].expand(-1, -1, 3) for mask in result.masks[0]]
    panels = [image, *masks, drawing.overlay(image, result.masks[0], alpha=0.55, scale=1)]
    panels += [drawing.heat(score, scale=1) for score in scores[0]]
    names = [prompt, *result.labels, "all masks", *(f"attention to {label}" for label in result.labels)]
    drawing.contact_sheet(panels, names, columns=1 + len(masks), scale=2).save(path, optimize=True)


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
    parser.add_argument("--weights", type=Path, default=BUNDLED["things"], help="of the model (default: things)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parser.add_argument("--readme", type=Path, help="write the image of the README here")
    parser.add_argument("--loss", type=Path, default=ROOT / "training" / "loss.json", help="the losses of --curve")
    parser.add_argument("--curve", type=Path, help="write the loss curve here")
    options = parser.parse_args()
    if not (options.sheet or options.readme or options.curve):
        parser.error("there is nothing to make; give --sheet, --readme or --curve")
    if options.curve:
        if not options.loss.is_file():
            sys.exit(f"There is no file {options.loss}. Run scripts/demo_model/train.py first, or give --loss.")
        loss_curve(json.loads(options.loss.read_text()), options.curve)
    if not (options.sheet or options.readme):
        return
    boot("--use-pytorch-cross-attention")
    sampler = DemoSampler(options.weights)
    with torch.inference_mode():
        if options.sheet:
            contact_sheet(sampler, options.sheet)
        if options.readme:
            readme_image(sampler, options.readme)


if __name__ == "__main__":
    main()
