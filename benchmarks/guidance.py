"""Does semantic guidance help the model follow the prompt? Judged by the flat colours of the demo model's images.

    python benchmarks/guidance.py

Each prompt names two or three objects of different colours and shapes. The image is generated with plain guidance, with
S-CFG's regions and with GoCA's regions, with the same seed and scale. The prompt is followed if every object appears: a
connected piece of its colour whose outline fits its shape best (see judging.py). Prints a Markdown table with 95 % intervals
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from boot import use
from judging import Count, colours_of, named, rate
from painting import Painter, add_arguments, start_host

PLAIN = "plain"


@dataclass
class Result:
    """The results of one kind of guidance: which prompts were followed, and how many of their objects appeared."""

    obeyed: dict[int, bool] = field(default_factory=dict)
    things: Count = field(default_factory=Count)

    def add(self, seed: int, picture: np.ndarray, scene: Any) -> None:
        colours = colours_of(picture, scene)
        there = [named(colours, thing) is not None for thing in scene.objects]
        self.obeyed[seed] = all(there)
        for one in there:
            self.things.add(one)


def difference(ours: list[bool], plain: list[bool]) -> str:
    """The difference of two rates over the same prompts, with its interval."""
    gains = sum(a and not b for a, b in zip(ours, plain, strict=True))
    losses = sum(b and not a for a, b in zip(ours, plain, strict=True))
    count, mean = len(ours), (gains - losses) / len(ours)
    half = 1.96 * math.sqrt(max(0.0, gains + losses - (gains - losses) ** 2 / count)) / count
    return f"{mean:+.1%} ({mean - half:+.1%} to {mean + half:+.1%}); {gains} gained, {losses} lost"


def batches(painter: Painter, drawn: dict[int, Any], size: int) -> Iterator[list[int]]:
    """The seeds of scenes whose prompts fit into one batch, at most ``size`` at once."""
    groups = defaultdict(list)
    for seed, scene in drawn.items():
        groups[painter.alike(scene.caption)].append(seed)
    for seeds in groups.values():
        for start in range(0, len(seeds), size):
            yield seeds[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="prompts sampled at once")
    parser.add_argument("--seed", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, nargs="+", default=[4.0], help="guidance scales, one table each")
    add_arguments(parser)
    options = parser.parse_args()
    start_host(options)
    scenes, scfg, semantic = (
        use("goca_core.demo.scenes"),
        use("goca_core.capture.guidance.patch"),
        use("goca_core.guidance.semantic"),
    )
    seeds = range(options.seed, options.seed + options.prompts)
    drawn = {seed: scenes.draw(seed, plain=True, count=2 + number % 2) for number, seed in enumerate(seeds)}
    judge = Result()
    for seed, scene in drawn.items():
        judge.add(seed, scene.image, scene)
    painter = Painter(options.weights, options.steps, options.cfg[0])
    models = {PLAIN: painter.model}
    models |= {rule: scfg.guide(painter.model, semantic.Settings(rule)) for rule in semantic.REGION_RULES}
    work = list(batches(painter, drawn, options.batch))
    for painter.cfg in options.cfg:
        results = {way: Result() for way in models}
        with torch.inference_mode():
            for group in tqdm(work, disable=not sys.stderr.isatty()):
                positive = painter.encode(*(drawn[seed].caption for seed in group))
                for way, model in models.items():
                    pictures = painter.pictures(painter.paint(model, positive, group))
                    for seed, picture in zip(group, pictures, strict=True):
                        results[way].add(seed, picture, drawn[seed])
        print(f"\n{options.prompts} prompts, {painter}")
        print(f"the judge is right on drawn scenes: {rate(list(judge.obeyed.values()))}\n")
        print(
            "| guidance | prompt followed completely | compared with plain | objects that appear |\n|---|---|---|---|"
        )
        for way, found in results.items():
            ours, plain = ([one.obeyed[seed] for seed in seeds] for one in (found, results[PLAIN]))
            print(
                f"| {way} | {rate(ours)} | {'' if way == PLAIN else difference(ours, plain)} | {found.things} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
