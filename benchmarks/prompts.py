"""Does the demo model of everyday things show what a prompt names? Samples prompts and looks for the things by their sprites.

    python benchmarks/prompts.py --prompts 200 --out results.jsonl
    python benchmarks/prompts.py --judge        only checks the judge, on drawn scenes: what it finds, and finds wrongly

Prompts are the captions of scenes that were not trained on, with one and with two things. Every thing must be found at a
place of its own, in its colour. A stopped run continues with the same --out. About ten seconds per image on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import Count
from benchmarks.sprites import NAMES, Judge
from goca_core.capture.weights import BUNDLED
from goca_core.demo.scenes import draw
from scripts.demo_model.sampler import DemoSampler, add_arguments, start

# Far from the seeds of the training, which begin at 2**40.
SEED = 5_000_000


def check_judge(judge: Judge, scenes: int) -> None:
    """How often it finds a thing that was drawn, and one that was not."""
    right, wrong = Count(), Count()
    for number in range(scenes):
        scene = draw(SEED + number, kind="things", plain=True)
        drawn = [item.name for item in scene.objects]
        absent = [name for name in NAMES if name not in drawn][number % (len(NAMES) - 3)]
        *found, extra = judge.find(scene.image, [*drawn, absent])
        for match in found:
            right.add(match is not None)
        wrong.add(extra is not None)
    print(f"drawn and found: {right}\nnot drawn but found: {wrong}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--prompts", type=int, default=200, help="prompts with one thing, and as many with two")
    parser.add_argument("--steps", type=int, default=14, help="sampling steps")
    parser.add_argument("--out", type=Path, help="a file of results, to continue a stopped run")
    parser.add_argument("--judge", action="store_true", help="only check the judge, on as many drawn scenes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judge = Judge()
    if options.judge:
        check_judge(judge, options.prompts)
        return
    start(options)
    sampler = DemoSampler(options.weights or BUNDLED["things"], options.steps)
    known: dict[str, list[bool]] = {}
    if options.out and options.out.is_file():
        known = dict(json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines())
    counts = {1: Count(), 2: Count()}
    for number in range(options.prompts):
        for things, count in counts.items():
            scene = draw(SEED + number, kind="things", plain=True, count=things)
            key = f"{things} {scene.caption}"
            if key not in known:
                with torch.inference_mode():
                    samples = sampler.sample(sampler.model, sampler.encode(scene.caption), (number,))
                    image = sampler.decode(samples)[0]
                known[key] = judge.shows(image, [item.name for item in scene.objects])
                if options.out:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([key, known[key]]) + "\n")
            count.add(all(known[key]))
    print(f"{sampler}\none thing: {counts[1]}\ntwo things: {counts[2]}")


if __name__ == "__main__":
    main()
