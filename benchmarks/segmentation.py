"""How good are the masks? Segment drawn scenes whose true masks are known, with each part of the method on and off.

    python benchmarks/segmentation.py --scenes 200

A scene is encoded, noised to one level, and seen by the demo model once (the paper's protocol); the masks come from the
same recorder and pipeline that the nodes use. Prints a Markdown table: mean intersection over union of the ground and
six shapes, at theta 0 and at the best of nine thresholds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use

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


class Segmenter:
    """The demo model, recorded for one forward at one noise level."""

    def __init__(self, weights: Path | None, sigma: float | None) -> None:
        demo = use("nodes.demo_model")
        self.recorder, self.tokens = use("goca_core.capture.recorder"), use("goca_core.capture.tokens")
        self.model, self.clip, self.vae = demo.load(weights or demo.WEIGHTS)
        family = use("goca_core.capture.family")
        plan = family.find_family(self.model.model).plan(family.network_of(self.model.model))
        self.sigma = sigma or plan.noise_level

    def record(self, scene: Any, seed: int) -> Any:
        import comfy.sample
        import comfy.samplers

        words = self.tokens.word_map(self.clip, scene.caption)
        positive = self.tokens.attach(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(scene.caption)), words)
        latent = self.vae.encode(torch.from_numpy(scene.image)[None].float() / 255)
        model, recorder = self.recorder.record(self.model, self.recorder.Window())
        # One Euler step from the noise level to zero is one forward; cfg 1 leaves out the negative.
        samples = comfy.samplers.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            positive,
            [],
            1.0,
            model.load_device,
            comfy.samplers.ksampler("euler"),
            torch.tensor([self.sigma, 0.0]),
            latent_image=latent,
            disable_pbar=True,
            seed=seed,
        )
        return recorder.collect(samples)


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
    segmenter = Segmenter(options.weights, options.sigma)
    counts = {(name, theta): metrics.Confusion(1 + len(scenes.SHAPES)) for name in METHODS for theta in THETAS}
    with torch.inference_mode():
        for number in tqdm(range(options.scenes), disable=not sys.stderr.isatty()):
            scene = scenes.draw(options.seed + number, plain=True)
            attention = segmenter.record(scene, options.seed + number)
            classes = np.array([0, *(1 + scenes.SHAPES.index(thing.shape) for thing in scene.things)])
            phrases = "\n".join(thing.shape for thing in scene.things)
            for name, (head, layer, rescale) in METHODS.items():
                scores = core.Scores(core.aggregate(attention, head, layer), rescale)
                for theta in THETAS:
                    result = pipeline.cut(scores, pipeline.Request(phrases, theta=theta, order=options.propagation))
                    found = (result.masks[0] * torch.arange(1, len(classes))[:, None, None]).sum(0).long().numpy()
                    counts[name, theta].update(classes[found], classes[scene.labels])
    print(
        f"{options.scenes} scenes, noise level {segmenter.sigma:.3f}, propagation {options.propagation}, background rule offset\n"
    )
    print("| method | mIoU at theta 0 | best mIoU | at theta |\n|---|---|---|---|")
    for name in METHODS:
        miou = {theta: counts[name, theta].miou() for theta in THETAS}
        best = max(THETAS, key=lambda theta: miou[theta])
        print(f"| {name} | {miou[0.0]:.3f} | {miou[best]:.3f} | {best:+.1f} |")


if __name__ == "__main__":
    main()
