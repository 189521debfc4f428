"""Do masks get better as the model gets better? Measures stages of the demo model's training, from worse to better.

    python benchmarks/scaling.py training/stage_*.safetensors --scenes 200 --plot docs/images/scaling.png

For each stage it prints the validation loss, on scenes and noise that training never used, and the mean intersection over
union of three methods: at the default threshold (untuned) and at the best one of the sweep. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from goca_core.demo.scenes import draw
from goca_core.demo.wavelet import WaveletCodec
from goca_core.evaluate.methods import parse
from goca_core.evaluate.run import evaluate
from goca_core.evaluate.worker import Job
from scripts.boot import boot

NAMES = {
    "vanilla": "head=average,layer=vanilla,rescale=per-token renorm+",
    "GoCA": "head=dot-product w/o clamp,layer=dot-product similarity,rescale=sum-1 rescaling + per-token renorm+",
    "heads and rescaling": "head=dot-product w/o clamp,layer=vanilla,rescale=sum-1 rescaling + per-token renorm+",
}
COLOURS = {"vanilla": "#777777", "GoCA": "#d55e00", "heads and rescaling": "#0072b2"}
# Steps of the noise schedule. Below them, the image hardly needs the prompt; above them, most of the error is random.
LEVELS = (400, 550, 700, 850)


class Stage(NamedTuple):
    name: str
    loss: float
    untuned: dict[str, float]
    best: dict[str, float]


def validation_loss(weights: Path, first: int, count: int) -> float:
    """Mean squared error of the v-prediction, over new scenes and all `LEVELS`."""
    from goca_core.capture.demo_model import load

    model, clip, _ = load(weights)
    drawn = [draw(first + number) for number in range(count)]
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    latents = WaveletCodec().encode(images.float() / 127.5 - 1)
    sigmas, errors = model.model.model_sampling.sigmas, []
    with torch.inference_mode():
        words = [clip.encode_from_tokens_scheduled(clip.tokenize(scene.caption))[0][0] for scene in drawn]
        for level in LEVELS:
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(first + level))
            alpha = 1 / (1 + sigmas[level] ** 2).sqrt()
            sigma = sigmas[level] * alpha
            noisy, target = alpha * latents + sigma * noise, alpha * noise - sigma * latents
            for part in range(0, count, 16):
                rows = slice(part, part + 16)
                steps = torch.full((len(drawn[rows]),), float(level))
                guess = model.model.diffusion_model(noisy[rows], steps, context=torch.cat(words[rows]))
                errors.append((guess - target[rows]).square().mean((1, 2, 3)))
    return float(torch.cat(errors).mean())


def measure(weights: Path, options: argparse.Namespace, progress: Callable[..., Any]) -> Stage:
    methods = tuple(parse(f"{parts},order={options.order}").resolved("offset", "auto", 1) for parts in NAMES.values())
    job = Job(
        data="scenes",
        methods=methods,
        checkpoint=str(weights.resolve()),
        seed=options.first,
        options=(("count", options.scenes), ("seed", options.first)),
    )
    with tempfile.TemporaryDirectory() as scratch:
        result = evaluate(job, Path(scratch), workers=options.workers, sheets=0, progress=progress)
    scores = [result["methods"][method.name] for method in methods]
    return Stage(
        weights.stem,
        validation_loss(weights, options.first, options.scenes),
        {name: 100 * one["untuned"]["miou"] for name, one in zip(NAMES, scores, strict=True)},
        {name: 100 * one["best"]["miou"] for name, one in zip(NAMES, scores, strict=True)},
    )


def plot(stages: Sequence[Stage], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    losses = [stage.loss for stage in stages]
    for name, colour in COLOURS.items():
        axes.plot(losses, [stage.best[name] for stage in stages], "o-", color=colour, label=f"{name}, best threshold")
        axes.plot(losses, [stage.untuned[name] for stage in stages], "o:", color=colour, label=f"{name}, untuned")
    axes.invert_xaxis()
    axes.set(xscale="log", xlabel="validation loss of the model (better to the right)", ylabel="mIoU, percent")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path, nargs="+", help="weights of the demo model, one file per stage")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--first", type=int, default=40_000, help="number of the first scene; training uses others")
    parser.add_argument("--order", type=int, default=2, help="propagation steps")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="also save a plot here")
    options = parser.parse_args()
    boot()
    from tqdm import tqdm

    stages = [measure(weights, options, tqdm) for weights in options.stages]
    print(
        f"{options.scenes} scenes, {options.order} propagation steps, mIoU in percent: untuned / at the best threshold\n"
    )
    print(f"| weights | validation loss | {' | '.join(NAMES)} |")
    print("|---|---|" + "---|" * len(NAMES))
    for stage in stages:
        cells = " | ".join(f"{stage.untuned[name]:.1f} / {stage.best[name]:.1f}" for name in NAMES)
        print(f"| {stage.name} | {stage.loss:.4f} | {cells} |")
    if options.plot:
        plot(sorted(stages, key=lambda stage: -stage.loss), options.plot)


if __name__ == "__main__":
    main()
