"""Does semantic guidance help a prompt to be obeyed? Judged by the flat colours of the demo model's pictures.

    python benchmarks/guidance.py

Each prompt names two or three things of different colours and shapes. It is painted with plain guidance, with S-CFG's and
with GoCA's regions, with the same seed and scale. It is obeyed if every thing is there: a connected piece of its colour
whose outline is nearest to its shape. Prints a Markdown table with 95 % intervals (Wilson for the rates, paired for the
difference to plain guidance), and how often the judge is right about drawn scenes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from boot import boot, use
from editing import DRAWN, Count, Painter, colour_of

PLAIN = "plain"
# Things are drawn turned by up to this much, either way.
TURNS = np.linspace(-0.35, 0.35, 7)


def outline(shape: str, turn: float, area: float, centre: tuple[float, float], side: int) -> np.ndarray:
    """A shape as it is drawn, with this area and centre of mass (row, column), in a picture of this side."""
    scenes = use("goca_core.scenes")

    def drawn(x: float, y: float, radius: float) -> np.ndarray:
        thing = scenes.Thing("red", shape, x / side, y / side, radius / side, turn)
        return np.asarray(scenes.stencil(thing, side, side) >= 0.5)

    model = drawn(side / 2, side / 2, side / 4)
    radius = side / 4 * math.sqrt(area / model.sum())
    row, column = (np.array(ndimage.center_of_mass(model)) - side / 2) * radius / (side / 4)
    return drawn(centre[1] - column, centre[0] - row, radius)


def shape_of(piece: np.ndarray) -> str:
    """The shape whose outline covers a piece [H, W] best."""

    def overlap(shape: str, turn: float) -> float:
        other = outline(shape, turn, piece.sum(), ndimage.center_of_mass(piece), len(piece))
        return float((piece & other).sum() / (piece | other).sum())

    best = {shape: max(overlap(shape, turn) for turn in TURNS) for shape in use("goca_core.scenes").SHAPES}
    return max(best, key=best.__getitem__)


def obeyed(picture: np.ndarray, scene: Any) -> bool:
    """Whether every thing of a scene is in a picture [H, W, 3] of 0..255."""
    palette = use("goca_core.scenes").COLOURS
    colours = colour_of(picture, palette, [np.median(scene.image[scene.labels == 0], 0)])
    for thing in scene.things:
        pieces, count = ndimage.label(colours == list(palette).index(thing.colour))
        large = [pieces == number for number in range(1, count + 1)]
        if not any(shape_of(piece) == thing.shape for piece in large if piece.mean() >= DRAWN):
            return False
    return True


def difference(ours: list[bool], plain: list[bool]) -> str:
    """Of two rates over the same prompts, with its interval."""
    gains = sum(a and not b for a, b in zip(ours, plain, strict=True))
    losses = sum(b and not a for a, b in zip(ours, plain, strict=True))
    count, mean = len(ours), (gains - losses) / len(ours)
    half = 1.96 * math.sqrt(max(0.0, gains + losses - (gains - losses) ** 2 / count)) / count
    return f"{mean:+.1%} ({mean - half:+.1%} to {mean + half:+.1%}); {gains} gained, {losses} lost"


def rate(found: list[bool]) -> Count:
    return Count(sum(found), len(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--weights", type=Path, help="other weights than the bundled ones")
    options = parser.parse_args()
    boot()
    torch.set_num_threads(1)
    scenes, scfg, semantic = use("goca_core.scenes"), use("goca_core.capture.scfg"), use("goca_core.semantic")
    painter = Painter(options.weights, options.steps, options.cfg)
    models = {PLAIN: painter.model}
    models |= {rule: scfg.guide(painter.model, semantic.Settings(rule)) for rule in semantic.REGION_RULES}
    results: dict[str, list[bool]] = {way: [] for way in models}
    drawn: list[bool] = []
    channels = painter.model.model.latent_format.latent_channels
    with torch.inference_mode():
        for number in tqdm(range(options.prompts), disable=not sys.stderr.isatty()):
            seed = options.seed + number
            scene = scenes.draw(seed, plain=True, count=2 + number % 2)
            drawn.append(obeyed(scene.image.astype(float), scene))
            for way, model in models.items():
                empty = {"samples": torch.zeros(1, channels, 32, 32)}
                latent = painter.paint(model, painter.encode(scene.caption), seed, empty)
                results[way].append(obeyed(painter.pictures(latent)[0], scene))
    print(
        f"{options.prompts} prompts, {options.steps} steps, cfg {options.cfg:g}; judge right about drawn scenes: {rate(drawn)}\n"
    )
    print("| guidance | fully obeyed | against plain |\n|---|---|---|")
    for way, found in results.items():
        print(f"| {way} | {rate(found)} | {'' if way == PLAIN else difference(found, results[PLAIN])} |")


if __name__ == "__main__":
    main()
