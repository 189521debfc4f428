"""Does each of two LoRAs act on its own thing, and not on the other? Judged by the pixels of the demo model's images.

    python benchmarks/lora.py

Each prompt names two objects. One LoRA, which makes objects striped, belongs to the first; another, which makes them dotted,
to the second. The images are generated without LoRAs, with both loaded the usual way, with LoRA by Mask (masks from a first
run with the same seed), and with LoRA by Word (one run). An image counts if both objects are there without LoRAs, by colour
and shape; their pixels are those of that image, because a pattern does not move an object.

The right thing and only it: the first object has stripes and no dots, the second dots and no stripes. Prints a Markdown table
with 95 % intervals (Wilson). The change elsewhere is the mean difference of pixels away from both objects, of 255.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import Count, colours_of, named
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.capture.lora.word import WordPlan, lora_by_word
from goca_core.capture.weights import DEMO_LORAS
from goca_core.demo.scenes import COLOURS, Scene, draw
from goca_core.pipeline import MaskRequest, MaskResult, make_masks
from scripts.demo_model.patterns import CLEAN, MARKED, PATTERNS, shares
from scripts.demo_model.sampler import DemoSampler, add_arguments, start

# Pixels around an object that may change with it.
MARGIN = 6
NAMES = tuple(PATTERNS)


@dataclass
class Result:
    """``own``: each object has its own pattern; ``clean``: none has the other's; both counted by image."""

    own: Count = field(default_factory=Count)
    clean: Count = field(default_factory=Count)
    both: Count = field(default_factory=Count)
    elsewhere: list[float] = field(default_factory=list)

    def add(self, found: list[dict[str, float]]) -> None:
        own = all(shares_of[NAMES[n]] >= MARKED for n, shares_of in enumerate(found))
        clean = all(shares_of[NAMES[1 - n]] < CLEAN for n, shares_of in enumerate(found))
        self.own.add(own)
        self.clean.add(clean)
        self.both.add(own and clean)


def file_of(pattern: str, folder: Path) -> Path:
    return folder / f"goca_demo_{pattern}.safetensors"


def judged(image: np.ndarray, scene: Scene, pixels: list[np.ndarray]) -> list[dict[str, float]]:
    """How much of each object each pattern covers."""
    return [
        shares(image, where, np.asarray(COLOURS[item.colour], np.float32))
        for where, item in zip(pixels, scene.objects, strict=True)
    ]


def models(sampler: DemoSampler, scene: Scene, result: MaskResult, options: argparse.Namespace) -> dict[str, object]:
    """A MODEL for each method."""
    import comfy.sd
    import comfy.utils

    files = [file_of(name, options.loras) for name in NAMES]
    phrases = [item.name for item in scene.objects]
    stacked = masked = text = worded = sampler.model
    for number, (file, phrase) in enumerate(zip(files, phrases, strict=True)):
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        stacked = comfy.sd.load_lora_for_models(stacked, None, tensors, options.strength, 0.0)[0]
        mask = result.masks[:, number]
        masked, _ = lora_by_mask(masked, file, options.strength, mask, options.feather, phrase)
        text, _ = lora_by_mask(text, file, options.strength, mask, options.feather)
        plan = WordPlan(MaskRequest(""), (), options.start_percent, feather=options.feather)
        worded, _, _ = lora_by_word(worded, file, phrase, options.strength, plan)
    found: dict[str, object] = {
        "both loaded the usual way": stacked,
        "LoRA by Mask": masked,
        "LoRA by Word": worded,
    }
    if options.text:
        found["LoRA by Mask, without phrases"] = text
    return found


def one_prompt(
    sampler: DemoSampler, seed: int, size: int, options: argparse.Namespace, results: dict[str, Result], drawn: Count
) -> None:
    """Generate some images of one prompt with every method, and count."""
    scene = draw(seed, plain=True, count=2)
    seeds = [1000 * seed + number for number in range(size)]
    latent, attention = sampler.record(scene.caption, seeds)
    images = sampler.decode(latent)
    pixels = {}
    for n, image in enumerate(images):
        found = [named(colours_of(image, scene), item) for item in scene.objects]
        drawn.add(all(each is not None for each in found))
        if all(each is not None for each in found):
            # Without the edge, whose colours are mixed.
            pixels[n] = [ndimage.binary_erosion(each, iterations=1) for each in found]
    if not pixels:
        return
    phrases = "\n".join(item.name for item in scene.objects)
    result = make_masks(attention, MaskRequest(phrases))
    base = results.setdefault("no LoRA", Result())
    for n, where in pixels.items():
        base.add(judged(images[n], scene, where))
        base.elsewhere.append(0.0)
    for name, model in models(sampler, scene, result, options).items():
        made = sampler.decode(sampler.sample(model, sampler.encode(scene.caption), seeds))
        counted = results.setdefault(name, Result())
        for n, where in pixels.items():
            counted.add(judged(made[n], scene, where))
            away = ~ndimage.binary_dilation(np.any(where, 0), iterations=MARGIN + 1)
            if away.any():
                counted.elsewhere.append(float(np.abs(made[n] - images[n])[away].mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="images per prompt, sampled at once")
    parser.add_argument("--seed", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--strength", type=float, default=1.0, help="strength of both LoRAs")
    parser.add_argument("--feather", type=float, default=0.0)
    parser.add_argument("--start-percent", type=float, default=0.3, help="start_percent of LoRA by Word")
    parser.add_argument("--text", action="store_true", help="also LoRA by Mask without phrases")
    parser.add_argument("--loras", type=Path, default=DEMO_LORAS, help="folder of the LoRAs")
    add_arguments(parser)
    options = parser.parse_args()
    start(options)
    sampler = DemoSampler(options.weights, options.steps, options.cfg)
    results: dict[str, Result] = {}
    drawn = Count()
    with torch.inference_mode():
        for number in tqdm(range(math.ceil(options.images / options.batch)), disable=not sys.stderr.isatty()):
            size = min(options.batch, options.images - number * options.batch)
            one_prompt(sampler, options.seed + number, size, options, results, drawn)
            if number % 2:
                for name, result in results.items():
                    print(f"{name}: {result.both}", file=sys.stderr, flush=True)
    print(f"{options.images} images, {sampler}; both objects there without LoRAs: {drawn} (these count)\n")
    print(
        "| method | each has its own pattern | none has the other's | both | change elsewhere, of 255 |\n|---|---|---|---|---|"
    )
    for name, result in results.items():
        print(f"| {name} | {result.own} | {result.clean} | {result.both} | {np.mean(result.elsewhere):.1f} |")


if __name__ == "__main__":
    main()
