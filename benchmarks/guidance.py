"""Does semantic guidance help the model follow the prompt? Judged by the pixels of the demo model's images.

    python benchmarks/guidance.py
    python benchmarks/guidance.py --kind things --prompts 100
    python benchmarks/guidance.py --regions GoCA --renew-every 2 3     does it matter how old regions are?

Each prompt names two or three objects of different colours and shapes. The image is generated with plain guidance, with
S-CFG's regions and with GoCA's regions, with the same seed and scale. The prompt is followed if every object appears: a
connected piece of its colour whose outline fits its shape best (see judging.py); a thing, where its sprite does (see
sprites.py). Prints a Markdown table with 95 % intervals
(Wilson for the rates, paired for the difference to plain guidance), the rate for single objects, and how often the judge is
right on drawn scenes. Prompts whose words have the same positions are sampled in one batch; its rows do not affect each other.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import Count, colours_of, named, rate
from benchmarks.sprites import Judge
from goca_core.capture.guidance.patch import guide
from goca_core.capture.weights import BUNDLED
from goca_core.demo.scenes import KINDS, Scene, draw
from goca_core.guidance.semantic import REGION_RULES, Settings
from scripts.demo_model.sampler import DemoSampler, add_arguments, start

PLAIN, EACH_STEP = "plain", "GoCA"


@dataclass
class Result:
    """The results of one kind of guidance: which prompts were followed, and how many of their objects appeared."""

    followed: dict[int, bool] = field(default_factory=dict)
    objects: Count = field(default_factory=Count)

    def add(self, seed: int, there: list[bool]) -> None:
        self.followed[seed] = all(there)
        for one in there:
            self.objects.add(one)


def shapes_in(image: np.ndarray, scene: Scene) -> list[bool]:
    """Which objects of a scene are in an image."""
    colours = colours_of(image, scene)
    return [named(colours, item) is not None for item in scene.objects]


def things_in(judge: Judge, image: np.ndarray, scene: Scene) -> list[bool]:
    return judge.shows(image, [item.name for item in scene.objects])


def difference(ours: list[bool], other: list[bool]) -> str:
    """The difference of two rates over the same prompts, with its interval."""
    gains = sum(a and not b for a, b in zip(ours, other, strict=True))
    losses = sum(b and not a for a, b in zip(ours, other, strict=True))
    count, mean = len(ours), (gains - losses) / len(ours)
    half = 1.96 * math.sqrt(max(0.0, gains + losses - (gains - losses) ** 2 / count)) / count
    return f"{mean:+.1%} ({mean - half:+.1%} to {mean + half:+.1%}); {gains} gained, {losses} lost"


def batches(sampler: DemoSampler, drawn: dict[int, Scene], size: int) -> Iterator[list[int]]:
    """The seeds of scenes whose prompts fit into one batch, at most ``size`` at once."""
    groups = defaultdict(list)
    for seed, scene in drawn.items():
        groups[sampler.alike(scene.caption)].append(seed)
    for seeds in groups.values():
        for first in range(0, len(seeds), size):
            yield seeds[first : first + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), default="shapes", help="which demo model")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="prompts sampled at once")
    parser.add_argument("--seed", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, nargs="+", default=[4.0], help="guidance scales, one table each")
    parser.add_argument(
        "--regions", nargs="+", choices=REGION_RULES, default=list(REGION_RULES), help="whose regions, besides none"
    )
    parser.add_argument(
        "--renew-every", type=int, nargs="*", default=[], help="also with GoCA's regions of every so many steps"
    )
    add_arguments(parser)
    options = parser.parse_args()
    start(options)
    seeds = range(options.seed, options.seed + options.prompts)
    drawn = {seed: draw(seed, kind=options.kind, plain=True, count=2 + number % 2) for number, seed in enumerate(seeds)}
    found_in = shapes_in if options.kind == "shapes" else partial(things_in, Judge())
    judge = Result()
    for seed, scene in drawn.items():
        judge.add(seed, found_in(scene.image, scene))
    sampler = DemoSampler(options.weights or BUNDLED[options.kind], options.steps, options.cfg[0])
    models = {PLAIN: sampler.model} | {rule: guide(sampler.model, Settings(rule)) for rule in options.regions}
    renewed = {f"GoCA, every {every} steps": every for every in options.renew_every}
    models |= {name: guide(sampler.model, Settings("GoCA", renew_every=n)) for name, n in renewed.items()}
    work = list(batches(sampler, drawn, options.batch))
    for sampler.cfg in options.cfg:
        results = {name: Result() for name in models}
        with torch.inference_mode():
            for group in tqdm(work, disable=not sys.stderr.isatty()):
                positive = sampler.encode(*(drawn[seed].caption for seed in group))
                for name, model in models.items():
                    images = sampler.decode(sampler.sample(model, positive, group))
                    for seed, image in zip(group, images, strict=True):
                        results[name].add(seed, found_in(image, drawn[seed]))
        print(f"\n{options.prompts} prompts, {sampler}")
        print(f"the judge is right on drawn scenes: {rate(list(judge.followed.values()))}\n")
        # How old regions are is compared with regions of each step, everything else with no regions.
        heads = ("guidance", "prompt followed completely", "compared with plain", "with GoCA in each step")
        print(f"| {' | '.join(heads)} | objects that appear |\n|{'---|' * 5}")
        for name, found in results.items():
            ours = [found.followed[seed] for seed in seeds]
            compared = [
                difference(ours, [results[other].followed[seed] for seed in seeds])
                if name != other and (other == PLAIN or name in renewed) and other in results
                else ""
                for other in (PLAIN, EACH_STEP)
            ]
            print(f"| {name} | {rate(ours)} | {' | '.join(compared)} | {found.objects} |", flush=True)


if __name__ == "__main__":
    main()
