"""Do masks from words edit what they name, and nothing else? Judged by the flat colours of the demo model's images.

    python benchmarks/editing.py

Each prompt names two objects of different colours and shapes. The images are generated and recorded, and the masks are made
from the words. Then the first object is edited with the methods of the example graphs. An image only counts if its first
object has the right colour and shape, and the colour of the second one is there (see judging.py).

Recolouring: the object gets a prompt of its own with another colour, by a regional prompt with the same seed, in one pass, or
by inpainting its mask. It is recoloured if at least half of its pixels have the new colour and at most a fifth the old one.

Replacing: its mask is inpainted with an object of another colour and shape. It is replaced if there is a piece of the new
colour at the old place, and of all six shapes the new one fits its outline best.

Nothing else changed if the new colour hardly appears elsewhere and the second object kept its colour. The change outside is
the mean difference of pixels away from the mask that was used, before anything is pasted. Prints Markdown tables with 95 %
intervals (Wilson). --turn and --start take several values, one row each.
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

# If more than this fraction of the image has the new colour elsewhere, the edit has failed.
SPILL = 0.01
# Pixels around a mask that may change with it: feather, grown masks, and the reach of the VAE.
MARGIN = 8


@dataclass
class Result:
    """The results of one editing method. ``done``: recoloured or replaced; ``alone``: nothing else changed colour."""

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
        """The mean over the images, and the value that 95 % of them stay below."""
        if not self.outside:
            return "none"
        return f"{np.mean(self.outside):.1f} (95 % below {np.quantile(self.outside, 0.95):.1f})"


@dataclass(frozen=True)
class Wish:
    """The two objects of a scene, the new colour and shape of the first one, and the background."""

    first: Any
    second: Any
    colour: str
    shape: str
    ground: str

    def prompt(self, shape: str) -> str:
        return f"{_some(f'{self.colour} {shape}')} and {_some(self.second.name)} on {self.ground}"


@dataclass(frozen=True)
class Work:
    """The images of one prompt: latents, masks and seeds."""

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


# Images [B, H, W, 3], and the masks [B, H, W] that were used for the first object.
Edited = tuple[np.ndarray, np.ndarray]
Way = Callable[[Work], Edited]


def regional(start: float) -> Way:
    """A second run with the same seed, in which the mask has its own prompt."""

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
    """The same in one run, with masks made during the run."""

    def edit(work: Work) -> Edited:
        painter, options = work.painter, work.options
        request = use("goca_core.pipeline").Request(work.labels, theta=options.theta)
        make = use("goca_core.capture.regional.recorder").regional_pass
        model, regions = make(painter.model, painter.clip, request, work.own, turn, feather=options.feather)
        samples = painter.paint(model, painter.encode(work.caption), work.seeds)
        return painter.pictures(samples), regions.masks(samples)[0].masks[:, 0].numpy()

    return edit


def again(shape: Callable[[Wish], str]) -> Way:
    """Inpaint the grown mask with a soft edge, using ComfyUI's nodes, as in the graph replace_by_word."""

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
    """before, after: colour of each pixel [H, W]; thing: the pixels of the first object."""
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
    """Whether only the first object changed its colour. It may be there twice; every copy counts as the first object."""
    near = ndimage.binary_dilation(before == index(wish.first.colour), iterations=MARGIN)
    new, other = index(wish.colour), before == index(wish.second.colour)
    spilled = ((after == new) & (before != new) & ~near).mean()
    return bool(spilled <= SPILL and (after[other] == before[other]).mean() >= 0.7)


def one_prompt(
    painter: Painter, seed: int, size: int, options: argparse.Namespace, results: dict[str, Result], drawn: list[Count]
) -> None:
    """Generate some images of one prompt, edit them with every method, and count."""
    scenes, pipeline, recorder = (
        use("goca_core.demo.scenes"),
        use("goca_core.pipeline"),
        use("goca_core.capture.recorder"),
    )
    scene = scenes.draw(seed, plain=True, count=2)
    first, second = scene.objects
    rng = np.random.default_rng(seed)
    colour = str(rng.choice([c for c in scenes.COLOURS if c not in (first.colour, second.colour)]))
    shape = str(rng.choice([s for s in scenes.SHAPES if s not in (first.shape, second.shape)]))
    wish = Wish(first, second, colour, shape, scene.background)
    seeds = [1000 * seed + number for number in range(size)]
    model, kept = recorder.record(painter.model, recorder.Window())
    latent = painter.paint(model, painter.encode(scene.caption), seeds)
    pictures = painter.pictures(latent)
    request = pipeline.Request(f"{first.name}\n{second.name}", theta=options.theta)
    cut = pipeline.make_masks(kept.collect(latent), request)
    before = [colours_of(picture, scene) for picture in pictures]
    things = [named(colours, first) for colours in before]
    coloured = [all((c == index(thing.colour)).mean() >= DRAWN for thing in scene.objects) for c in before]
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
    """The editing methods by name, each with its judge."""
    found: dict[str, tuple[Way, Callable[..., None]]] = {}
    for start in options.start:
        found[f"Regional Prompt, start at {start:.0%}"] = regional(start), judge_recoloured
    for turn in options.turn:
        found[f"Regional Pass, start at {turn:.0%}"] = one_pass(turn), judge_recoloured
    found["inpainting the mask"] = again(lambda wish: wish.first.shape), judge_recoloured
    found["replacing by word (inpainting)"] = again(lambda wish: wish.shape), judge_replaced
    return found


def _some(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="images per prompt, sampled at once")
    parser.add_argument("--seed", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--theta", type=float, default=0.0, help="theta of Mask From Tokens")
    parser.add_argument("--feather", type=float, default=2.0, help="feather of Regional Prompt and Regional Pass")
    parser.add_argument("--start", type=float, nargs="+", default=[0.3], help="start_percent of Regional Prompt")
    parser.add_argument("--turn", type=float, nargs="+", default=[0.3], help="start_percent of Regional Pass")
    parser.add_argument("--grow", type=int, default=4, help="pixels by which a mask is grown before inpainting")
    add_arguments(parser)
    options = parser.parse_args()
    start_host(options)
    painter = Painter(options.weights, options.steps, options.cfg)
    chosen = ways(options)
    results = {way: Result() for way in chosen}
    drawn = [Count(), Count()]
    with torch.inference_mode():
        for number in tqdm(range(math.ceil(options.images / options.batch)), disable=not sys.stderr.isatty()):
            size = min(options.batch, options.images - number * options.batch)
            one_prompt(painter, options.seed + number, size, options, results, drawn)
    print(f"{options.images} images, {painter}")
    print(f"both colours: {drawn[0]}; with the first object as named: {drawn[1]} (these count)\n")
    last = "nothing else changed | both | change outside, of 255"
    print(f"| method | recoloured | {last} |\n|---|---|---|---|---|")
    for way, result in results.items():
        if chosen[way][1] is judge_recoloured:
            print(f"| {way} | {result.done} | {result.alone} | {result.both} | {result.change()} |")
    heads = f"has the new colour | of these, closer to the new shape | has the new shape | {last}"
    print(f"\n| method | {heads} |\n|---|---|---|---|---|---|---|")
    for way, r in results.items():
        if chosen[way][1] is judge_replaced:
            print(f"| {way} | {r.coloured} | {r.nearer} | {r.done} | {r.alone} | {r.both} | {r.change()} |")


if __name__ == "__main__":
    main()
