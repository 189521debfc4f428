"""Do masks from words edit what they name, and nothing else? Judged by the flat colours of the demo model's pictures.

    python benchmarks/editing.py

Each prompt names two things of different colours. Pictures are painted and recorded, masks found by the words, and the
first thing is then given another colour: by a regional prompt with the same seed, in one pass, and by painting its mask
again. A thing was drawn if its colour is there; it was recoloured if at least half of its pixels have the new colour and at most a fifth
the old one; the rest was left alone if the new colour is hardly anywhere else and the other thing kept its colour.
Prints a Markdown table with 95 % intervals (Wilson).
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use

# Pixels count as of a colour of the scenes when they are nearer to it than to any other and not far from it.
FAR = 70.0
# Smaller than this share of the picture nothing was drawn; more than SPILL of the new colour elsewhere is a failure.
DRAWN, SPILL = 0.01, 0.01
# Pixels around a thing that may change with it: feather, grown masks, and the reach of the picture code.
MARGIN = 8


class Painter:
    """The demo model with a sampler's settings."""

    def __init__(self, weights: Path | None, steps: int, cfg: float) -> None:
        demo = use("goca_core.capture.demo_model")
        self.model, self.clip, self.vae = demo.load(weights or demo.WEIGHTS)
        self.steps, self.cfg = steps, cfg

    def encode(self, text: str) -> list[Any]:
        tokens = use("goca_core.capture.tokens")
        encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return tokens.attach(encoded, tokens.word_map(self.clip, text))

    def paint(self, model: Any, positive: list[Any], seed: int, latent: dict[str, Any]) -> dict[str, Any]:
        import nodes

        settings = (seed, self.steps, self.cfg, "dpmpp_2m", "karras")
        return nodes.common_ksampler(model, *settings, positive, self.encode(""), latent)[0]

    def pictures(self, latent: dict[str, Any]) -> np.ndarray:
        """[B, H, W, 3] in 0..255"""
        return self.vae.decode(latent["samples"]).float().clamp(0, 1).numpy() * 255


@dataclass
class Count:
    """Successes among trials."""

    yes: int = 0
    of: int = 0

    def add(self, success: bool) -> None:
        self.yes, self.of = self.yes + success, self.of + 1

    def __str__(self) -> str:
        if not self.of:
            return "none"
        share, z = self.yes / self.of, 1.96
        middle = (share + z * z / (2 * self.of)) / (1 + z * z / self.of)
        half = z * math.sqrt(share * (1 - share) / self.of + z * z / (4 * self.of**2)) / (1 + z * z / self.of)
        return f"{share:.1%} of {self.of} ({middle - half:.1%} to {middle + half:.1%})"


@dataclass
class Result:
    """What one way of editing did."""

    recoloured: Count = field(default_factory=Count)
    alone: Count = field(default_factory=Count)
    both: Count = field(default_factory=Count)
    outside: list[float] = field(default_factory=list)


def colour_of(picture: np.ndarray, palette: dict[str, tuple[int, int, int]], grounds: list[np.ndarray]) -> np.ndarray:
    """Index of the palette's colour at each pixel, -1 for ground or nothing."""
    known = np.array([*palette.values(), *grounds], float)
    distance = np.linalg.norm(picture[:, :, None].astype(float) - known, axis=-1)
    nearest = distance.argmin(-1)
    return np.where((nearest < len(palette)) & (distance.min(-1) < FAR), nearest, -1)


def judge(result: Result, before: np.ndarray, after: np.ndarray, colours: list[np.ndarray], names: list[int]) -> None:
    """before, after: pictures [H, W, 3]; colours: theirs by pixel; names: old, new and the other thing's colour."""
    old, new, other = names
    thing = colours[0] == old
    near = ndimage.binary_dilation(thing, iterations=MARGIN)
    there = (colours[1] == new) & near
    recoloured = there.sum() >= 0.5 * thing.sum() and (colours[1][thing] == old).mean() <= 0.2
    spilled = ((colours[1] == new) & ~near).mean()
    kept = ((colours[1] == other) & (colours[0] == other)).sum() / max(1, (colours[0] == other).sum())
    alone = spilled <= SPILL and kept >= 0.7
    result.recoloured.add(bool(recoloured))
    result.alone.add(bool(alone))
    result.both.add(bool(recoloured and alone))
    result.outside.append(float(np.abs(after - before)[~near].mean()))


def edited(
    painter: Painter,
    way: str,
    prompt: str,
    new: str,
    cut: Any,
    latent: dict[str, Any],
    options: argparse.Namespace,
    seed: int,
) -> np.ndarray:
    """The pictures with the first thing in its new colour."""
    masks, labels = cut.masks.flatten(0, 1), "\n".join(cut.labels)
    if way == "in one pass":
        request = use("goca_core.pipeline").Request("\n".join(cut.labels), theta=options.theta)
        asked = request, f"{cut.labels[0]}: {new}", options.turn
        model, _ = use("goca_core.capture.regional_pass").regional_pass(
            painter.model, painter.clip, *asked, feather=options.feather
        )
        empty = {"samples": torch.zeros_like(latent["samples"])}
        return painter.pictures(painter.paint(model, painter.encode(prompt), seed, empty))
    if way == "regional prompt":
        regional = use("goca_core.capture.regional").regional_prompt
        positive, _ = regional(
            painter.encode(prompt), painter.clip, masks, labels, f"{cut.labels[0]}: {new}",
            feather=options.feather, start=options.start,
        )  # fmt: skip
        empty = {"samples": torch.zeros_like(latent["samples"])}
        return painter.pictures(painter.paint(painter.model, positive, seed, empty))
    grown = torch.nn.functional.max_pool2d(cut.masks[:, :1], 2 * options.grow + 1, 1, options.grow)
    hole = {"samples": latent["samples"], "noise_mask": grown}
    return painter.pictures(painter.paint(painter.model, painter.encode(new), seed + 1, hole))


def one_prompt(
    painter: Painter, seed: int, size: int, options: argparse.Namespace, results: dict[str, Result], drawn: Count
) -> None:
    """Paint some pictures of one prompt, edit them in every way, and count."""
    scenes, pipeline, recorder = use("goca_core.scenes"), use("goca_core.pipeline"), use("goca_core.capture.recorder")
    scene = scenes.draw(seed, plain=True, count=2)
    first, second = scene.things
    palette = scenes.COLOURS
    index = {name: number for number, name in enumerate(palette)}
    new = str(np.random.default_rng(seed).choice([c for c in palette if c not in (first.colour, second.colour)]))
    things = f"{_article(new)} {new} {first.shape} and {_article(second.name)} {second.name}"
    model, kept = recorder.record(painter.model, recorder.Window())
    latent = painter.paint(model, painter.encode(scene.caption), seed, {"samples": torch.zeros(size, 12, 32, 32)})
    before = painter.pictures(latent)
    request = pipeline.Request(f"{first.name}\n{second.name}", theta=options.theta)
    cut = pipeline.cut(kept.collect(latent["samples"]), request)
    grounds = [np.median(scene.image[scene.labels == 0], 0)]
    seen = [colour_of(picture, palette, grounds) for picture in before]
    present = [all((s == index[thing.colour]).mean() >= DRAWN for thing in scene.things) for s in seen]
    for there in present:
        drawn.add(there)
    names = [index[first.colour], index[new], index[second.colour]]
    for way, result in results.items():
        after = edited(painter, way, scene.caption, f"{things} on {scene.ground}", cut, latent, options, seed)
        for sample in np.flatnonzero(present):
            colours = [seen[sample], colour_of(after[sample], palette, grounds)]
            judge(result, before[sample], after[sample], colours, names)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="pictures of one prompt, painted at once")
    parser.add_argument("--seed", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--theta", type=float, default=0.0, help="of Mask From Tokens")
    parser.add_argument("--feather", type=float, default=4.0, help="of Regional Prompt")
    parser.add_argument("--start", type=float, default=0.2, help="of Regional Prompt")
    parser.add_argument("--turn", type=float, default=0.3, help="start_percent of Regional Pass")
    parser.add_argument(
        "--grow", type=int, default=3, help="pixels by which a mask is grown before it is painted again"
    )
    parser.add_argument("--weights", type=Path, help="other weights than the bundled ones")
    options = parser.parse_args()
    boot()
    torch.set_num_threads(1)
    painter = Painter(options.weights, options.steps, options.cfg)
    results = {way: Result() for way in ("regional prompt", "in one pass", "painting the mask again")}
    drawn = Count()
    with torch.inference_mode():
        for number in tqdm(range(math.ceil(options.pictures / options.batch)), disable=not sys.stderr.isatty()):
            size = min(options.batch, options.pictures - number * options.batch)
            one_prompt(painter, options.seed + number, size, options, results, drawn)
    print(f"{options.pictures} pictures, {options.steps} steps, cfg {options.cfg:g}; both things drawn in {drawn}\n")
    print("| way | recoloured | nothing else changed colour | both | change far from the thing, of 255 |")
    print("|---|---|---|---|---|")
    for way, result in results.items():
        change = f"{np.mean(result.outside):.1f}" if result.outside else "none"
        print(f"| {way} | {result.recoloured} | {result.alone} | {result.both} | {change} |")


if __name__ == "__main__":
    main()
