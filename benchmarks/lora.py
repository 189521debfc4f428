"""Does each of two LoRAs act on its own thing, and not on the other? Judged by the pixels of the demo model's images.

    python benchmarks/lora.py
    python benchmarks/lora.py --images 100 --log first.json       half of it on each core
    python benchmarks/lora.py --images 100 --seed 60025 --log second.json
    python benchmarks/lora.py --count first.json second.json

Each prompt names two objects. One LoRA, which makes objects striped, belongs to the first; another, which makes them dotted,
to the second. The images are generated without LoRAs, with both loaded the usual way, with LoRA by Mask (masks from a first
run with the same seed), and with LoRA by Word (one run). An image counts if both objects are there without LoRAs, by colour
and shape.

The right thing and only it: the first object has stripes and no dots, the second dots and no stripes, where they are in the
image that is judged (lora_judge.py). Prints a Markdown table with 95 % intervals (Wilson), and why images fail. The change
elsewhere is the mean difference of pixels away from both objects, of 255; that of the other thing is the difference on the
second object if only the first LoRA is there, for the first image of some prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import Count, colours_of, named
from benchmarks.lora_judge import CAUSES, NAMES, Judged, cause, judge, no_other_patterns, own_patterns
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.capture.lora.word import LoRAByWord, WordPlan, lora_by_word
from goca_core.capture.weights import DEMO_LORAS
from goca_core.demo.scenes import Scene, draw
from goca_core.pipeline import MaskRequest, as_scoring, make_masks, sharpened
from scripts.demo_model.sampler import DemoSampler, add_arguments, start

# Pixels around an object that may change with it.
MARGIN = 6
NONE, STACKED, MASKED, UNNAMED, WORDED = (
    "no LoRA",
    "both loaded the usual way",
    "LoRA by Mask",
    "LoRA by Mask, without phrases",
    "LoRA by Word",
)


@dataclass
class Result:
    """``own``: each object has its own pattern; ``clean``: none has the other's; both counted by image."""

    own: Count = field(default_factory=Count)
    clean: Count = field(default_factory=Count)
    both: Count = field(default_factory=Count)
    causes: Counter[str] = field(default_factory=Counter)
    elsewhere: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """What was found in one image, a line of the log."""
        objects = [Judged(**each) for each in found["objects"]]
        self.own.add(own_patterns(objects))
        self.clean.add(no_other_patterns(objects))
        why = cause(objects)
        self.both.add(why is None)
        if why is not None:
            self.causes[why] += 1
        self.elsewhere += found["elsewhere"]
        self.other += found["other"]


class Methods:
    """A MODEL for each method, with the LoRAs of one prompt or the first of them."""

    def __init__(self, sampler: DemoSampler, scene: Scene, masks: Tensor, options: argparse.Namespace) -> None:
        self._sampler, self._masks, self._options = sampler, masks, options
        self._files = [options.loras / f"goca_demo_{name}.safetensors" for name in NAMES]
        self._phrases = [item.name for item in scene.objects]
        self.names = [STACKED, MASKED, *([UNNAMED] if options.text else []), WORDED]

    def model(self, method: str, alone: bool = False) -> tuple[Any, LoRAByWord | None]:
        """The MODEL, and who has its masks if they are made on the way. ``alone``: the first LoRA, for the first image."""
        import comfy.sd
        import comfy.utils

        options, model, worded = self._options, self._sampler.model, None
        masks = self._masks[:1] if alone else self._masks
        for number, (file, phrase) in enumerate(zip(self._files, self._phrases, strict=True)):
            if alone and number:
                break
            strength = (options.word_strength if method == WORDED else options.strength)[number]
            if method == STACKED:
                tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
                model = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
            elif method == WORDED:
                plan = WordPlan(
                    MaskRequest(""),
                    (),
                    options.start_percent,
                    options.before,
                    options.evaluations,
                    options.renew_every,
                    options.feather,
                )
                model, worded, _ = lora_by_word(model, file, phrase, strength, plan)
            else:
                model, _ = lora_by_mask(
                    model,
                    file,
                    strength,
                    masks[:, number],
                    options.feather,
                    phrase if method == MASKED else "",
                    start=options.mask_start,
                )
        return model, worded


class Benchmark:
    """Generates images of prompts with every method, and counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sampler = DemoSampler(options.weights, options.steps, options.cfg)
        self.log: list[dict[str, Any]] = []
        self.alone: Counter[str] = Counter()

    def one_prompt(self, seed: int, size: int) -> None:
        """Adds a line to the log for each image and method."""
        sampler, scene = self.sampler, draw(seed, plain=True, count=2)
        seeds = [1000 * seed + number for number in range(size)]
        latent, attention = sampler.record(scene.caption, seeds)
        images = sampler.decode(latent)
        pixels: dict[int, list[np.ndarray]] = {}
        for number, image in enumerate(images):
            found = [named(colours_of(image, scene), item) for item in scene.objects]
            there = [each for each in found if each is not None]
            if len(there) == len(found):
                pixels[number] = there
            else:
                self.log.append({"method": NONE, "prompt": scene.caption, "image": number, "objects": None})
        if not pixels:
            return
        scoring = as_scoring(attention)
        if self.options.sharpened:
            scoring = sharpened(scoring, torch.from_numpy(images / 255).float())
        masks = make_masks(scoring, MaskRequest("\n".join(item.name for item in scene.objects))).masks
        self._judge(NONE, scene, images, images, masks, pixels)
        methods = Methods(sampler, scene, masks, self.options)
        for name in methods.names:
            model, worded = methods.model(name)
            latent = sampler.sample(model, sampler.encode(scene.caption), seeds)
            used = masks if worded is None else worded.masks(latent)[0].masks
            made = self._judge(name, scene, images, sampler.decode(latent), used, pixels)
            if 0 in pixels and self.alone[name] < self.options.alone:
                self.alone[name] += 1
                made[0]["other"].append(self._other(name, scene, methods, seeds, images, pixels))

    def _judge(
        self,
        name: str,
        scene: Scene,
        before: np.ndarray,
        after: np.ndarray,
        masks: Tensor,
        pixels: dict[int, list[np.ndarray]],
    ) -> list[dict[str, Any]]:
        lines = []
        for number, where in pixels.items():
            objects = judge(after[number], scene, where, [mask > 0.5 for mask in masks[number].numpy()])
            away = ~ndimage.binary_dilation(np.any(where, 0), iterations=MARGIN)
            change = [float(np.abs(after[number] - before[number])[away].mean())] if away.any() else []
            told = {"method": name, "prompt": scene.caption, "image": number, "cause": cause(objects)}
            lines.append(told | {"objects": [asdict(each) for each in objects], "elsewhere": change, "other": []})
        self.log += lines
        return lines

    def _other(
        self,
        name: str,
        scene: Scene,
        methods: Methods,
        seeds: Sequence[int],
        images: np.ndarray,
        pixels: dict[int, list[np.ndarray]],
    ) -> float:
        """What the first LoRA alone changes on the second object of the first image."""
        model, _ = methods.model(name, alone=True)
        (made,) = self.sampler.decode(self.sampler.sample(model, self.sampler.encode(scene.caption), seeds[:1]))
        where = ndimage.binary_erosion(pixels[0][1])
        return float(np.abs(made - images[0])[where].mean())


def table(log: Sequence[dict[str, Any]]) -> str:
    """What the lines of one or several logs say."""
    drawn, results = Count(), dict[str, Result]()
    for line in log:
        if line["method"] == NONE:
            drawn.add(line["objects"] is not None)
        if line["objects"] is not None:
            results.setdefault(line["method"], Result()).add(line)
    lines = [
        f"{drawn.of} images; both objects there without LoRAs: {drawn} (these count)\n",
        "| method | each has its own pattern | none has the other's | both | change of the other thing | elsewhere |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        other = f"{np.mean(result.other):.1f} ({len(result.other)} images)" if result.other else ""
        lines.append(
            f"| {name} | {result.own} | {result.clean} | {result.both} | {other} | {np.mean(result.elsewhere):.1f} |"
        )
    lines += ["", f"| failures | {' | '.join(CAUSES)} |", "|---" * (len(CAUSES) + 1) + "|"]
    for name, result in results.items():
        if name != NONE:
            lines.append(f"| {name} | {' | '.join(str(result.causes[why]) for why in CAUSES)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="images per prompt, sampled at once")
    parser.add_argument("--seed", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--strength", type=float, nargs=2, default=(1.0, 1.2), help="of each LoRA in LoRA by Mask")
    parser.add_argument("--word-strength", type=float, nargs=2, default=(1.2, 1.3), help="the same in LoRA by Word")
    parser.add_argument("--feather", type=float, default=0.0)
    parser.add_argument("--mask-start", type=float, default=0.3, help="start_percent of LoRA by Mask")
    parser.add_argument(
        "--sharpened", action="store_true", help="masks of LoRA by Mask that follow the edges of the image"
    )
    parser.add_argument("--start-percent", type=float, default=0.3, help="start_percent of LoRA by Word")
    parser.add_argument("--before", type=float, default=0.0, help="strength_before of LoRA by Word")
    parser.add_argument("--evaluations", type=int, default=2, help="evaluations of LoRA by Word")
    parser.add_argument("--renew-every", type=int, default=1, help="renew_every of LoRA by Word")
    parser.add_argument(
        "--alone", type=int, default=20, help="prompts that are also generated with the first LoRA alone"
    )
    parser.add_argument("--text", action="store_true", help="also LoRA by Mask without phrases")
    parser.add_argument("--loras", type=Path, default=DEMO_LORAS, help="folder of the LoRAs")
    parser.add_argument("--log", type=Path, help="write what was found in each image to this JSON file")
    parser.add_argument(
        "--count", type=Path, nargs="+", metavar="LOG", help="only print the table of these logs together"
    )
    add_arguments(parser)
    options = parser.parse_args()
    if options.count:
        print(table([line for file in options.count for line in json.loads(file.read_text("utf-8"))]))
        return
    start(options)
    benchmark = Benchmark(options)
    prompts = math.ceil(options.images / options.batch)
    with torch.inference_mode():
        for number in range(prompts):
            benchmark.one_prompt(options.seed + number, min(options.batch, options.images - number * options.batch))
            print(f"{number + 1}/{prompts}\n{table(benchmark.log)}", file=sys.stderr, flush=True)
            if options.log:
                options.log.write_text(json.dumps(benchmark.log), encoding="utf-8")
    print(f"{benchmark.sampler}\n{table(benchmark.log)}")


if __name__ == "__main__":
    main()
