"""How good are the masks? Segment drawn scenes whose true masks are known, with each part of the method on and off.

    python benchmarks/segmentation.py --scenes 200

A scene is encoded, noised to one level, and seen by the demo model once (the paper's protocol), as **Segment Image** does;
the masks come from the same pipeline that the nodes use. Prints a Markdown table: mean intersection over union of the ground and
six shapes, at theta 0 and at the best of nine thresholds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use
from demo_scenes import Demo

AVERAGE, VANILLA, RENORM = "average", "vanilla", "per-token renorm+"
HEADS, LAYERS, RESCALE = "dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+"
METHODS = {
    "plain averaging": (AVERAGE, VANILLA, RENORM),
    "heads only": (HEADS, VANILLA, RENORM),
    "layers only": (AVERAGE, LAYERS, RENORM),
    "rescaling only": (AVERAGE, VANILLA, RESCALE),
    "all (GoCA)": (HEADS, LAYERS, RESCALE),
}
THETAS = tuple(round(-0.4 + 0.1 * i, 1) for i in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=20_000, help="first scene; the training draws from other generators"
    )
    parser.add_argument("--propagation", type=int, default=2)
    parser.add_argument("--sigma", type=float, help="noise level (default: the paper's)")
    parser.add_argument("--weights", type=Path, help="other weights than the bundled ones")
    options = parser.parse_args()
    boot()
    torch.set_num_threads(1)
    scenes, pipeline, metrics = use("goca_core.scenes"), use("goca_core.pipeline"), use("goca_core.metrics")
    core = use("goca_core.attention")
    demo = Demo(options.weights)
    sigmas = None if options.sigma is None else [options.sigma]
    counts = {(name, theta): metrics.Confusion(1 + len(scenes.SHAPES)) for name in METHODS for theta in THETAS}
    with torch.inference_mode():
        for number in tqdm(range(options.scenes), disable=not sys.stderr.isatty()):
            scene = scenes.draw(options.seed + number, plain=True)
            picture = torch.from_numpy(scene.image)[None].float() / 255
            attention = demo.segment(picture, scene.caption, sigmas=sigmas, seed=options.seed + number)
            classes = np.array([0, *(1 + scenes.SHAPES.index(thing.shape) for thing in scene.things)])
            phrases = "\n".join(thing.shape for thing in scene.things)
            for name, (head, layer, rescale) in METHODS.items():
                scores = core.Scores(core.aggregate(attention, head, layer), rescale)
                for theta in THETAS:
                    result = pipeline.cut(scores, pipeline.Request(phrases, theta=theta, order=options.propagation))
                    found = (result.masks[0] * torch.arange(1, len(classes))[:, None, None]).sum(0).long().numpy()
                    counts[name, theta].update(classes[found], classes[scene.labels])
    print(
        f"{options.scenes} scenes, noise level {attention.sigmas[0]:.3f}, propagation {options.propagation}, background rule offset\n"
    )
    print("| method | mIoU at theta 0 | best mIoU | at theta |\n|---|---|---|---|")
    for name in METHODS:
        miou = {theta: counts[name, theta].miou() for theta in THETAS}
        best = max(THETAS, key=lambda theta: miou[theta])
        print(f"| {name} | {miou[0.0]:.3f} | {miou[best]:.3f} | {best:+.1f} |")


if __name__ == "__main__":
    main()
