"""Do masks from words edit what they name, and nothing else? Judged by the pixels of the demo model's images.

    python benchmarks/editing.py
    python benchmarks/editing.py --kind things

Each prompt names two objects of different colours and shapes. The images are generated and recorded, and the masks are made
from the words. Then the first object is edited with the methods of the example graphs. An image only counts if its first
object has the right colour and shape, and the colour of the second one is there (see judging.py).

Recolouring: the object gets a prompt of its own with another colour, by a regional prompt with the same seed, in one pass, or
by inpainting its mask. It is recoloured if at least half of its pixels have the new colour and at most a fifth the old one.

Replacing: its mask is inpainted with an object of another colour and shape. It is replaced if there is a piece of the new
colour at the old place, and of all six shapes the new one fits its outline best.

Nothing else changed if the new colour hardly appears elsewhere and the second object kept its colour.

With --kind things, objects are found by their sprites instead (see sprites.py). Scenes count whose first object has a colour.
It is recoloured or replaced if the sprite of the new object fits best at a place within its old outline, and nothing else
changed if the second object is found within its old outline, as it was.

The change outside is the mean difference of pixels away from the mask that was used, before anything is pasted. Prints
Markdown tables with 95 % intervals (Wilson). --turn and --start take several values, one row each. Pixels are those of an
image of 64 pixels; larger images have more.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import DRAWN, Count, colours_of, index, likeness, named, pieces, shape_of
from benchmarks.sprites import Judge
from goca_core.capture.regional.prompts import regional_prompt
from goca_core.capture.regional.recorder import regional_pass
from goca_core.capture.weights import BUNDLED
from goca_core.demo.scenes import COLOURS, KINDS, SHAPES, Scene, SceneObject, draw
from goca_core.demo.things import COLOURED
from goca_core.pipeline import MaskRequest, MaskResult, make_masks
from scripts.demo_model.sampler import DemoSampler, add_arguments, start

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
class Edit:
    """The two objects of a scene, the new colour and shape of the first one, and the background."""

    first: SceneObject
    second: SceneObject
    colour: str
    shape: str
    background: str

    def prompt(self, shape: str) -> str:
        return f"{_some(f'{self.colour} {shape}')} and {_some(self.second.name)} on {self.background}"


@dataclass(frozen=True)
class Batch:
    """The images of one prompt: latents, masks and seeds."""

    sampler: DemoSampler
    options: argparse.Namespace
    edit: Edit
    caption: str
    latent: Tensor
    result: MaskResult
    seeds: list[int]

    @property
    def labels(self) -> str:
        return "\n".join(self.result.labels)

    @property
    def prompts(self) -> str:
        """The prompt of the first object, as Regional Prompt and Regional Pass take it."""
        return f"{self.result.labels[0]}: {self.edit.prompt(self.edit.first.shape)}"


# Returns images [B, H, W, 3], and the masks [B, H, W] that were used for the first object.
Method = Callable[[Batch], tuple[np.ndarray, np.ndarray]]


def two_passes(start_percent: float) -> Method:
    """Regional Prompt: a second run with the same seed, in which the mask has its own prompt."""

    def run(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        sampler, masks = batch.sampler, batch.result.masks
        positive, _ = regional_prompt(
            sampler.encode(batch.caption), sampler.clip, masks.flatten(0, 1), batch.labels, batch.prompts,
            feather=batch.options.feather * sampler.side / 64, start=start_percent,
        )  # fmt: skip
        return sampler.decode(sampler.sample(sampler.model, positive, batch.seeds)), masks[:, 0].numpy()

    return run


def one_pass(start_percent: float) -> Method:
    """Regional Pass: the same in one run, with masks made during the run."""

    def run(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        sampler, options = batch.sampler, batch.options
        request = MaskRequest(batch.labels, theta=options.theta)
        model, regions = regional_pass(
            sampler.model,
            sampler.clip,
            request,
            batch.prompts,
            start_percent,
            feather=options.feather * sampler.side / 64,
        )
        samples = sampler.sample(model, sampler.encode(batch.caption), batch.seeds)
        return sampler.decode(samples), regions.masks(samples)[0].masks[:, 0].numpy()

    return run


def inpainting(shape: Callable[[Edit], str]) -> Method:
    """Inpaint the grown mask with a soft edge, using ComfyUI's nodes, as in the graph "Replace an object"."""

    def run(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
        from comfy_extras.nodes_mask import GrowMask
        from comfy_extras.nodes_post_processing import Blur

        sampler = batch.sampler
        scale = sampler.side // 64
        grown = GrowMask.execute(batch.result.masks[:, 0].contiguous(), scale * batch.options.grow, True).result[0]
        soft = Blur.execute(grown[..., None].repeat(1, 1, 1, 3), 3 * scale, 2.0 * scale).result[0][..., 0]
        model = DifferentialDiffusion.execute(sampler.model).result[0]
        positive = sampler.encode(batch.edit.prompt(shape(batch.edit)))
        seeds = [seed + 1_000_000 for seed in batch.seeds]
        samples = sampler.sample(model, positive, seeds, batch.latent, soft[:, None])
        return sampler.decode(samples), soft.numpy()

    return run


class ColourJudge:
    """For shapes: each object has a flat colour and an outline. What is known of an image is the colour of each pixel."""

    def edit(self, seed: int) -> tuple[Scene, Edit]:
        """The scene of a seed, and what its first object becomes."""
        scene = draw(seed, plain=True, count=2)
        return scene, _edit(scene, seed, SHAPES)

    def look(self, image: np.ndarray, scene: Scene) -> tuple[bool, Any]:
        """Whether both objects are there at all, and what is known of the image; None if it does not count."""
        colours = colours_of(image, scene)
        pixels = named(colours, scene.objects[0])
        there = all((colours == index(item.colour)).mean() >= DRAWN for item in scene.objects)
        return there, (colours, pixels) if there and pixels is not None else None

    def recoloured(self, result: Result, scene: Scene, edit: Edit, known: Any, image: np.ndarray) -> None:
        (before, pixels), after = known, colours_of(image, scene)
        old, new = index(edit.first.colour), index(edit.colour)
        done = (after[pixels] == new).mean() >= 0.5 and (after[pixels] == old).mean() <= 0.2
        result.add(bool(done), alone(edit, before, after))

    def replaced(self, result: Result, scene: Scene, edit: Edit, known: Any, image: np.ndarray) -> None:
        (before, pixels), after = known, colours_of(image, scene)
        near = ndimage.binary_dilation(pixels, iterations=MARGIN)
        found = [piece for piece in pieces(after == index(edit.colour)) if (piece & near).sum() >= 0.5 * piece.sum()]
        result.coloured.add(bool(found))
        if found:
            result.nearer.add(likeness(found[0], edit.shape) > likeness(found[0], edit.first.shape))
        done = bool(found) and shape_of(found[0]) == edit.shape
        result.add(done, alone(edit, before, after))


class SpriteJudge:
    """For things: each object is a sprite. What is known of an image is where its two objects are."""

    def __init__(self) -> None:
        self.judge = Judge()

    def edit(self, seed: int) -> tuple[Scene, Edit]:
        # Scenes whose first object has no colour are passed over.
        drawn = (draw(number, kind="things", plain=True, count=2) for number in itertools.count(1000 * seed))
        scene = next(scene for scene in drawn if scene.objects[0].colour)
        return scene, _edit(scene, seed, COLOURED)

    def look(self, image: np.ndarray, scene: Scene) -> tuple[bool, Any]:
        found = self.judge.find(image, [item.name for item in scene.objects])
        there = all(match is not None for match in found)
        return there, found if there else None

    def recoloured(self, result: Result, scene: Scene, edit: Edit, known: Any, image: np.ndarray) -> None:
        self._compare(result, f"{edit.colour} {edit.first.shape}", edit, known, image)

    def replaced(self, result: Result, scene: Scene, edit: Edit, known: Any, image: np.ndarray) -> None:
        self._compare(result, f"{edit.colour} {edit.shape}", edit, known, image)

    def _compare(self, result: Result, name: str, edit: Edit, known: Any, image: np.ndarray) -> None:
        new, other = (
            match is not None and math.hypot(match.row - old.row, match.column - old.column) <= old.radius
            for old, match in zip(known, self.judge.find(image, [name, edit.second.name]), strict=True)
        )
        result.add(new, other)


def _edit(scene: Scene, seed: int, shapes: Sequence[str]) -> Edit:
    first, second = scene.objects
    rng = np.random.default_rng(seed)
    colour = str(rng.choice([c for c in COLOURS if c not in (first.colour, second.colour)]))
    shape = str(rng.choice([s for s in shapes if s not in (first.shape, second.shape)]))
    return Edit(first, second, colour, shape, scene.background)


def alone(edit: Edit, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether only the first object changed its colour. It may be there twice; every copy counts as the first object."""
    near = ndimage.binary_dilation(before == index(edit.first.colour), iterations=MARGIN)
    new, other = index(edit.colour), before == index(edit.second.colour)
    spilled = ((after == new) & (before != new) & ~near).mean()
    return bool(spilled <= SPILL and (after[other] == before[other]).mean() >= 0.7)


def one_prompt(
    sampler: DemoSampler,
    judge: ColourJudge | SpriteJudge,
    seed: int,
    size: int,
    options: argparse.Namespace,
    results: dict[str, Result],
    drawn: list[Count],
) -> None:
    """Generate some images of one prompt, edit them with every method, and count."""
    scene, edit = judge.edit(seed)
    seeds = [1000 * seed + number for number in range(size)]
    latent, attention = sampler.record(scene.caption, seeds)
    images = sampler.decode(latent)
    result = make_masks(attention, MaskRequest(f"{edit.first.name}\n{edit.second.name}", theta=options.theta))
    counted = {}
    for number, image in enumerate(images):
        there, known = judge.look(image, scene)
        drawn[0].add(there)
        drawn[1].add(known is not None)
        if known is not None:
            counted[number] = known
    if not counted:
        return
    batch = Batch(sampler, options, edit, scene.caption, latent, result, seeds)
    for name, (method, aim) in methods(options).items():
        edited, masks = method(batch)
        for n, known in counted.items():
            getattr(judge, aim)(results[name], scene, edit, known, edited[n])
            far = ~ndimage.binary_dilation(masks[n] > 0, iterations=MARGIN * sampler.side // 64)
            if far.any():
                results[name].outside.append(float(np.abs(edited[n] - images[n])[far].mean()))


def methods(options: argparse.Namespace) -> dict[str, tuple[Method, str]]:
    """The editing methods by name, each with what it should do to the first object."""
    return {
        **{f"Regional Prompt, start at {at:.0%}": (two_passes(at), "recoloured") for at in options.start},
        **{f"Regional Pass, start at {at:.0%}": (one_pass(at), "recoloured") for at in options.turn},
        "inpainting the mask": (inpainting(lambda edit: edit.first.shape), "recoloured"),
        "replacing by word (inpainting)": (inpainting(lambda edit: edit.shape), "replaced"),
    }


def _some(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), default="shapes", help="which demo model")
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
    start(options)
    sampler = DemoSampler(options.weights or BUNDLED[options.kind], options.steps, options.cfg)
    judge = ColourJudge() if options.kind == "shapes" else SpriteJudge()
    chosen = methods(options)
    results = {name: Result() for name in chosen}
    drawn = [Count(), Count()]
    with torch.inference_mode():
        for number in tqdm(range(math.ceil(options.images / options.batch)), disable=not sys.stderr.isatty()):
            size = min(options.batch, options.images - number * options.batch)
            one_prompt(sampler, judge, options.seed + number, size, options, results, drawn)
    print(f"{options.images} images, {sampler}")
    print(f"both objects: {drawn[0]}; with the first one as named: {drawn[1]} (these count)\n")
    last = "nothing else changed | both | change outside, of 255"
    print(f"| method | recoloured | {last} |\n|---|---|---|---|---|")
    for name, result in results.items():
        if chosen[name][1] == "recoloured":
            print(f"| {name} | {result.done} | {result.alone} | {result.both} | {result.change()} |")
    heads = f"has the new colour | of these, closer to the new shape | has the new shape | {last}"
    print(f"\n| method | {heads} |\n|---|---|---|---|---|---|---|")
    for name, r in results.items():  # by sprite there is only whether the new object is there
        if chosen[name][1] == "replaced":
            print(f"| {name} | {r.coloured} | {r.nearer} | {r.done} | {r.alone} | {r.both} | {r.change()} |")


if __name__ == "__main__":
    main()
