"""Do masks from words edit what they name, and nothing else? Judged by the flat colours of the demo model's pictures.

    python benchmarks/editing.py

Each prompt names two things of different colours and shapes. Pictures are painted and recorded, masks are found by the words,
and the first thing is then edited in the ways of the example graphs. Only pictures count in which the first thing was drawn as
it is named, in colour and shape, and the second one's colour is there (judging.py).

Recolouring: the thing gets a prompt of its own with another colour, by a regional prompt with the same seed, in one pass, or by
painting its mask again. It is recoloured if at least half of its pixels have the new colour and at most a fifth the old one.

Replacing: its mask is painted again with a thing of another colour and shape. It is replaced if there is a piece of the new
colour, where the thing was, whose outline is nearest to the new shape of all six.

Nothing else changed if the new colour is hardly anywhere else and the second thing kept its colour. The change outside is the
mean difference of pixels away from the mask that was used, before anything is pasted. Prints Markdown tables with 95 %
intervals (Wilson). --turn and --start take several values, for a row each.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from boot import use
from judging import DRAWN, Count, colours_of, index, likeness, named, pieces, shape_of
from painting import Painter, add_arguments, start_host

# More than this share of the picture in the new colour elsewhere is a failure.
SPILL = 0.01
# Pixels around a mask that may change with it: feather, grown masks, and the reach of the picture code.
MARGIN = 8


@dataclass
class Result:
    """What one way of editing did. ``done``: recoloured or replaced; ``alone``: nothing else changed colour."""

    done: Count = field(default_factory=Count)
    alone: Count = field(default_factory=Count)
    both: Count = field(default_factory=Count)
    coloured: Count = field(default_factory=Count)
    nearer: Count = field(default_factory=Count)
    outside: list[float] = field(default_factory=list)

    def add(self, done: bool, alone: bool) -> None:
        self.done.add(done)
        self.alone.add(alone)
        self.both.add(done and alone)

    def change(self) -> str:
        """Mean over the pictures, and what 95 % of them stay below."""
        if not self.outside:
            return "none"
        return f"{np.mean(self.outside):.1f} (95 % below {np.quantile(self.outside, 0.95):.1f})"


@dataclass(frozen=True)
class Wish:
    """The two things of a scene, what the first is to become, and its ground."""

    first: Any
    second: Any
    colour: str
    shape: str
    ground: str

    def prompt(self, shape: str) -> str:
        return f"{_some(f'{self.colour} {shape}')} and {_some(self.second.name)} on {self.ground}"


@dataclass(frozen=True)
class Work:
    """The pictures of one prompt: latents, what was found in them, seeds."""

    painter: Painter
    options: argparse.Namespace
    wish: Wish
    caption: str
    latent: Tensor
    cut: Any
    seeds: list[int]

    @property
    def labels(self) -> str:
        return "\n".join(self.cut.labels)

    @property
    def own(self) -> str:
        return f"{self.cut.labels[0]}: {self.wish.prompt(self.wish.first.shape)}"


# Pictures [B, H, W, 3] and the masks [B, H, W] that were used for the first thing.
Edited = tuple[np.ndarray, np.ndarray]
Way = Callable[[Work], Edited]


def regional(start: float) -> Way:
    """A second run with the same seed, the mask by its own prompt."""

    def edit(work: Work) -> Edited:
        painter, masks = work.painter, work.cut.masks
        make = use("goca_core.capture.regional.prompts").regional_prompt
        positive, _ = make(
            painter.encode(work.caption), painter.clip, masks.flatten(0, 1), work.labels, work.own,
            feather=work.options.feather, start=start,
        )  # fmt: skip
        return painter.pictures(painter.paint(painter.model, positive, work.seeds)), masks[:, 0].numpy()

    return edit


def one_pass(turn: float) -> Way:
    """The same in one run, with masks of its own."""

    def edit(work: Work) -> Edited:
        painter, options = work.painter, work.options
        request = use("goca_core.pipeline").Request(work.labels, theta=options.theta)
        make = use("goca_core.capture.regional.recorder").regional_pass
        model, regions = make(painter.model, painter.clip, request, work.own, turn, feather=options.feather)
        samples = painter.paint(model, painter.encode(work.caption), work.seeds)
        return painter.pictures(samples), regions.masks(samples)[0].masks[:, 0].numpy()

    return edit


def again(shape: Callable[[Wish], str]) -> Way:
    """The grown mask with a soft edge painted again, by the host's nodes, as in the graph that replaces by word."""

    def edit(work: Work) -> Edited:
        from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
        from comfy_extras.nodes_mask import GrowMask
        from comfy_extras.nodes_post_processing import Blur

        painter, options = work.painter, work.options
        grown = GrowMask.execute(work.cut.masks[:, 0].contiguous(), options.grow, True).result[0]
        soft = Blur.execute(grown[..., None].repeat(1, 1, 1, 3), 3, 2.0).result[0][..., 0]
        model = DifferentialDiffusion.execute(painter.model).result[0]
        positive = painter.encode(work.wish.prompt(shape(work.wish)))
        seeds = [seed + 1_000_000 for seed in work.seeds]
        samples = painter.paint(model, positive, seeds, work.latent, soft[:, None])
        return painter.pictures(samples), soft.numpy()

    return edit


def judge_recoloured(result: Result, wish: Wish, before: np.ndarray, after: np.ndarray, thing: np.ndarray) -> None:
    """before, after: colours by pixel [H, W]; thing: the pixels of the first thing."""
    old, new = index(wish.first.colour), index(wish.colour)
    done = (after[thing] == new).mean() >= 0.5 and (after[thing] == old).mean() <= 0.2
    result.add(bool(done), alone(wish, before, after))


def judge_replaced(result: Result, wish: Wish, before: np.ndarray, after: np.ndarray, thing: np.ndarray) -> None:
    near = ndimage.binary_dilation(thing, iterations=MARGIN)
    found = [piece for piece in pieces(after == index(wish.colour)) if (piece & near).sum() >= 0.5 * piece.sum()]
    result.coloured.add(bool(found))
    if found:
        result.nearer.add(likeness(found[0], wish.shape) > likeness(found[0], wish.first.shape))
    done = bool(found) and shape_of(found[0]) == wish.shape
    result.add(done, alone(wish, before, after))


def alone(wish: Wish, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether nothing but the first thing changed its colour, wherever it was drawn: sometimes it is there twice."""
    near = ndimage.binary_dilation(before == index(wish.first.colour), iterations=MARGIN)
    new, other = index(wish.colour), before == index(wish.second.colour)
    spilled = ((after == new) & (before != new) & ~near).mean()
    return bool(spilled <= SPILL and (after[other] == before[other]).mean() >= 0.7)


def one_prompt(
    painter: Painter, seed: int, size: int, options: argparse.Namespace, results: dict[str, Result], drawn: list[Count]
) -> None:
    """Paint some pictures of one prompt, edit them in every way, and count."""
    scenes, pipeline, recorder = (
        use("goca_core.demo.scenes"),
        use("goca_core.pipeline"),
        use("goca_core.capture.recorder"),
    )
    scene = scenes.draw(seed, plain=True, count=2)
    first, second = scene.things
    rng = np.random.default_rng(seed)
    colour = str(rng.choice([c for c in scenes.COLOURS if c not in (first.colour, second.colour)]))
    shape = str(rng.choice([s for s in scenes.SHAPES if s not in (first.shape, second.shape)]))
    wish = Wish(first, second, colour, shape, scene.ground)
    seeds = [1000 * seed + number for number in range(size)]
    model, kept = recorder.record(painter.model, recorder.Window())
    latent = painter.paint(model, painter.encode(scene.caption), seeds)
    pictures = painter.pictures(latent)
    request = pipeline.Request(f"{first.name}\n{second.name}", theta=options.theta)
    cut = pipeline.make_masks(kept.collect(latent), request)
    before = [colours_of(picture, scene) for picture in pictures]
    things = [named(colours, first) for colours in before]
    coloured = [all((c == index(thing.colour)).mean() >= DRAWN for thing in scene.things) for c in before]
    present = [n for n in range(size) if things[n] is not None and coloured[n]]
    for number in range(size):
        drawn[0].add(coloured[number])
        drawn[1].add(number in present)
    if not present:
        return
    work = Work(painter, options, wish, scene.caption, latent, cut, seeds)
    for way, (edit, judge) in ways(options).items():
        edited, masks = edit(work)
        for sample in present:
            thing = things[sample]
            assert thing is not None
            judge(results[way], wish, before[sample], colours_of(edited[sample], scene), thing)
            far = ~ndimage.binary_dilation(masks[sample] > 0, iterations=MARGIN)
            if far.any():
                results[way].outside.append(float(np.abs(edited[sample] - pictures[sample])[far].mean()))


def ways(options: argparse.Namespace) -> dict[str, tuple[Way, Callable[..., None]]]:
    """The ways of editing by name, and who judges them."""
    found: dict[str, tuple[Way, Callable[..., None]]] = {}
    for start in options.start:
        found[f"regional prompt from {start:.0%} on"] = regional(start), judge_recoloured
    for turn in options.turn:
        found[f"in one pass from {turn:.0%} on"] = one_pass(turn), judge_recoloured
    found["painting the mask again"] = again(lambda wish: wish.first.shape), judge_recoloured
    found["replacing by word"] = again(lambda wish: wish.shape), judge_replaced
    return found


def _some(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="pictures of one prompt, painted at once")
    parser.add_argument("--seed", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--theta", type=float, default=0.0, help="of Mask From Tokens")
    parser.add_argument("--feather", type=float, default=2.0, help="of Regional Prompt and Regional Pass")
    parser.add_argument("--start", type=float, nargs="+", default=[0.3], help="start_percent of Regional Prompt")
    parser.add_argument("--turn", type=float, nargs="+", default=[0.3], help="start_percent of Regional Pass")
    parser.add_argument(
        "--grow", type=int, default=4, help="pixels by which a mask is grown before it is painted again"
    )
    add_arguments(parser)
    options = parser.parse_args()
    start_host(options)
    painter = Painter(options.weights, options.steps, options.cfg)
    chosen = ways(options)
    results = {way: Result() for way in chosen}
    drawn = [Count(), Count()]
    with torch.inference_mode():
        for number in tqdm(range(math.ceil(options.pictures / options.batch)), disable=not sys.stderr.isatty()):
            size = min(options.batch, options.pictures - number * options.batch)
            one_prompt(painter, options.seed + number, size, options, results, drawn)
    print(f"{options.pictures} pictures, {painter}")
    print(f"both colours are there in {drawn[0]}, and the first thing as it is named in {drawn[1]}: these count\n")
    last = "nothing else changed colour | both | change outside, of 255"
    print(f"| way | recoloured | {last} |\n|---|---|---|---|---|")
    for way, result in results.items():
        if chosen[way][1] is judge_recoloured:
            print(f"| {way} | {result.done} | {result.alone} | {result.both} | {result.change()} |")
    heads = f"the new colour is there | of these nearer to the new shape than to the old | of the new shape | {last}"
    print(f"\n| way | {heads} |\n|---|---|---|---|---|---|---|")
    for way, r in results.items():
        if chosen[way][1] is judge_replaced:
            print(f"| {way} | {r.coloured} | {r.nearer} | {r.done} | {r.alone} | {r.both} | {r.change()} |")


if __name__ == "__main__":
    main()
