"""The demo model with sampler settings, for scripts that generate many images. Start ComfyUI first (`start` or boot.py)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goca_core.attention.record import Attention
from goca_core.capture.conditioning import attach, word_map
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import record
from goca_core.capture.window import Window
from scripts.boot import boot

SAMPLER, SCHEDULER = "dpmpp_2m", "karras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `start`."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--weights", type=Path, help="other weights of the demo model (default: the bundled ones)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16: faster on processors that support it")


def start(options: argparse.Namespace) -> None:
    """Start ComfyUI with torch's attention, which is faster on a CPU than ComfyUI's own."""
    boot("--use-pytorch-cross-attention", *(["--bf16-unet"] if options.bf16 else []))
    torch.set_num_threads(options.threads)


class DemoSampler:
    """MODEL, CLIP and VAE of the demo model, with sampler settings."""

    def __init__(self, weights: Path | None = None, steps: int = 20, cfg: float = 4.0) -> None:
        from goca_core.capture import demo_model

        self.model, self.clip, self.vae = demo_model.load(weights or demo_model.WEIGHTS)
        self.steps, self.cfg = steps, cfg
        form = self.model.model.latent_format
        cells = demo_model.CELLS
        self._cell, self.side = (form.latent_channels, cells, cells), cells * form.spacial_downscale_ratio

    def __str__(self) -> str:
        precision = str(self.model.model.get_dtype()).removeprefix("torch.")
        return f"{SAMPLER} {SCHEDULER}, {self.steps} steps, cfg {self.cfg:g}, {precision}"

    def encode(self, *texts: str) -> list[Any]:
        """One CONDITIONING for a batch of prompts, one row each. Their words must have the same positions (see `alike`)."""
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in texts]
        (tensor, extra), *rest = (entry for (entry,) in encoded)
        tensors = [tensor, *(other for other, _ in rest)]
        return attach([[torch.cat(tensors), extra]], word_map(self.clip, texts[0]))

    def alike(self, text: str) -> tuple[Any, ...]:
        """A key that is equal for prompts whose words have the same positions."""
        words = word_map(self.clip, text)
        return words.length, tuple((word.positions, word.content) for word in words.words)

    def sample(
        self,
        model: Any,
        positive: list[Any],
        seeds: Sequence[int],
        latent: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Sample one latent per seed, as KSampler does. With ``latent`` and ``mask``, inpaint that part of the latent."""
        import comfy.sample

        latent = torch.zeros(len(seeds), *self._cell) if latent is None else latent
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])
        done: Tensor = comfy.sample.sample(
            model, noise, self.steps, self.cfg, SAMPLER, SCHEDULER, positive, self.encode(""), latent,
            denoise=1.0, noise_mask=mask, disable_pbar=True, seed=seeds[0],
        )  # fmt: skip
        return done

    def record(self, prompt: str, seeds: Sequence[int]) -> tuple[Tensor, Attention]:
        """Sample one latent per seed, and record the attention as Record Attention does by itself."""
        model, recorder = record(self.model, Window(), RecordOptions(method="auto"))
        samples = self.sample(model, self.encode(prompt), seeds)
        return samples, recorder.collect(samples)

    def decode(self, samples: Tensor) -> np.ndarray:
        """Images [B, H, W, 3] in 0..255."""
        found: np.ndarray = self.vae.decode(samples).float().clamp(0, 1).numpy() * 255
        return found
