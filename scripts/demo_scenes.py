"""The demo model, used as its nodes use it, for scripts that measure or show it. Call ``boot.boot`` first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from boot import use


class Demo:
    """The bundled demo model, or one with other weights."""

    def __init__(self, weights: Path | None = None) -> None:
        demo, self._tokens = use("goca_core.capture.demo_model"), use("goca_core.capture.conditioning")
        self.model, self.clip, self.vae = demo.load(weights or demo.WEIGHTS)

    def encode(self, prompt: str) -> list[Any]:
        """A CONDITIONING that carries its word map."""
        words = self._tokens.word_map(self.clip, prompt)
        return self._tokens.attach(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt)), words)

    def paint(self, prompt: str, seeds: Sequence[int]) -> tuple[torch.Tensor, Any]:
        """Generate images [B, H, W, 3], one for each seed, and record the attention."""
        import comfy.sample

        recorder = use("goca_core.capture.recorder")
        latent = torch.zeros(len(seeds), 12, 32, 32)
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])
        model, recorded = recorder.record(self.model, recorder.Window())
        sampling = (noise, 20, 4.0, "dpmpp_2m", "karras", self.encode(prompt), self.encode(""), latent)
        with torch.inference_mode():
            samples = comfy.sample.sample(model, *sampling, disable_pbar=True, seed=1)
            return self.vae.decode(samples), recorded.collect(samples)

    def segment(self, images: torch.Tensor, prompt: str, **options: Any) -> Any:
        """Record existing images [B, H, W, 3] in 0..1; options as for ``segment.segment``."""
        with torch.inference_mode():
            samples = self.vae.encode(images)
            return use("goca_core.capture.segment").segment(self.model, samples, self.encode(prompt), **options)
