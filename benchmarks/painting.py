"""The demo model with sampler settings, for benchmarks that generate many images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from boot import boot, use
from torch import Tensor

SAMPLER, SCHEDULER = "dpmpp_2m", "karras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `start_host`."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--weights", type=Path, help="other weights of the demo model (default: the bundled ones)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16: faster on processors that support it")


def start_host(options: argparse.Namespace) -> None:
    """Start ComfyUI with torch's attention, which is faster on a CPU than ComfyUI's own."""
    boot("--use-pytorch-cross-attention", *(["--bf16-unet"] if options.bf16 else []))
    torch.set_num_threads(options.threads)


class Painter:
    """MODEL, CLIP and VAE of the demo model, with sampler settings."""

    def __init__(self, weights: Path | None, steps: int, cfg: float) -> None:
        demo = use("goca_core.capture.demo_model")
        self.model, self.clip, self.vae = demo.load(weights or demo.WEIGHTS)
        self.steps, self.cfg = steps, cfg
        form = self.model.model.latent_format
        self._cell = (form.latent_channels, 64 // form.spacial_downscale_ratio, 64 // form.spacial_downscale_ratio)

    def __str__(self) -> str:
        precision = str(self.model.model.get_dtype()).removeprefix("torch.")
        return f"{SAMPLER} {SCHEDULER}, {self.steps} steps, cfg {self.cfg:g}, {precision}"

    def words(self, text: str) -> Any:
        return use("goca_core.capture.conditioning").word_map(self.clip, text)

    def encode(self, *texts: str) -> list[Any]:
        """One CONDITIONING for a batch of prompts, one row each. Their words must have the same positions (see `alike`)."""
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in texts]
        (tensor, extra), *rest = (entry for (entry,) in encoded)
        tensors = [tensor, *(other for other, _ in rest)]
        return use("goca_core.capture.conditioning").attach([[torch.cat(tensors), extra]], self.words(texts[0]))

    def alike(self, text: str) -> tuple[Any, ...]:
        """A key that is equal for prompts whose words have the same positions."""
        words = self.words(text)
        return words.length, tuple((word.positions, word.content) for word in words.words)

    def empty(self, count: int) -> Tensor:
        return torch.zeros(count, *self._cell)

    def paint(
        self,
        model: Any,
        positive: list[Any],
        seeds: Sequence[int],
        latent: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Sample one latent per seed, as KSampler does. With ``latent`` and ``mask``, inpaint that part of the latent."""
        import comfy.sample

        latent = self.empty(len(seeds)) if latent is None else latent
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])
        done: Tensor = comfy.sample.sample(
            model, noise, self.steps, self.cfg, SAMPLER, SCHEDULER, positive, self.encode(""), latent,
            denoise=1.0, noise_mask=mask, disable_pbar=True, seed=seeds[0],
        )  # fmt: skip
        return done

    def pictures(self, samples: Tensor) -> np.ndarray:
        """Decoded images [B, H, W, 3] in 0..255."""
        found: np.ndarray = self.vae.decode(samples).float().clamp(0, 1).numpy() * 255
        return found
