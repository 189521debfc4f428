"""Does semantic guidance help a prompt to be obeyed? Judged by the flat colours of the demo model's pictures.

    python benchmarks/guidance.py

Each prompt names two or three things of different colours and shapes. It is painted with plain guidance, with S-CFG's and
with GoCA's regions, with the same seed and scale. It is obeyed if every thing is there: a connected piece of its colour
whose outline is nearest to its shape (judging.py). Prints a Markdown table with 95 % intervals (Wilson for the rates, paired
for the difference to plain guidance), the rate for single things, and how often the judge is right about drawn scenes.
Prompts whose words are at the same places are painted together; rows of a batch do not see each other.
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
    """What one way of guiding did: for each prompt whether it was obeyed, and its things that were there."""

    obeyed: dict[int, bool] = field(default_factory=dict)
    things: Count = field(default_factory=Count)

    def add(self, seed: int, picture: np.ndarray, scene: Any) -> None:
        colours = colours_of(picture, scene)
        there = [named(colours, thing) is not None for thing in scene.things]
        self.obeyed[seed] = all(there)
        for one in there:
            self.things.add(one)


def difference(ours: list[bool], plain: list[bool]) -> str:
    """Of two rates over the same prompts, with its interval."""
    gains = sum(a and not b for a, b in zip(ours, plain, strict=True))
    losses = sum(b and not a for a, b in zip(ours, plain, strict=True))
    count, mean = len(ours), (gains - losses) / len(ours)
    half = 1.96 * math.sqrt(max(0.0, gains + losses - (gains - losses) ** 2 / count)) / count
    return f"{mean:+.1%} ({mean - half:+.1%} to {mean + half:+.1%}); {gains} gained, {losses} lost"


def batches(painter: Painter, drawn: dict[int, Any], size: int) -> Iterator[list[int]]:
    """The seeds of scenes whose prompts can be painted together, at most so many at once."""
    groups = defaultdict(list)
    for seed, scene in drawn.items():
        groups[painter.alike(scene.caption)].append(seed)
    for seeds in groups.values():
        for start in range(0, len(seeds), size):
            yield seeds[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="prompts painted at once")
    parser.add_argument("--seed", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, nargs="+", default=[4.0], help="guidance scales, a table for each")
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
        print(f"the judge is right about drawn scenes in {rate(list(judge.obeyed.values()))}\n")
        print("| guidance | fully obeyed | against plain | things there |\n|---|---|---|---|")
        for way, found in results.items():
            ours, plain = ([one.obeyed[seed] for seed in seeds] for one in (found, results[PLAIN]))
            print(
                f"| {way} | {rate(ours)} | {'' if way == PLAIN else difference(ours, plain)} | {found.things} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
