"""Train the LoRAs of the bundled demo model: one makes its objects striped, the other dotted.

    python scripts/demo_model/lora.py                       both (about forty minutes on one core)
    python scripts/demo_model/lora.py dotted --steps 600    one of them, longer
    python scripts/demo_model/lora.py --steps 2 --smoke     check that everything runs; the pack stays as it is

Run it with ComfyUI's interpreter. ComfyUI is in ``COMFYUI_DIR`` or ``.host``. The files are in the usual format, so
ComfyUI's Load LoRA reads them too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from goca_core.demo.scenes import draw
from scripts.boot import boot
from scripts.demo_model.patterns import PATTERNS, patterned

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ("steps", "batch", "rate", "rank", "seed")
# Layers that LoRAs are usually trained for: attention, feed-forward and convolutions, and not those of the time.
_LEFT_OUT = ("time_embed", "emb_layers", "label_emb")


class Change(nn.Module):
    """What a LoRA adds to one layer."""

    down: Any
    up: Any

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        out, inputs, *kernel = layer.weight.shape
        if kernel:
            how = {"stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(inputs, rank, tuple(kernel), bias=False, **how)
            self.up = nn.Conv2d(rank, out, 1, bias=False)
        else:
            self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, out, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(x))
        return out


class Trainer:
    """Trains one LoRA; the model itself stays as it is."""

    def __init__(self, pattern: str, options: argparse.Namespace) -> None:
        from goca_core.capture import demo_model

        torch.manual_seed(options.seed)
        self.pattern, self.options = pattern, options
        model, self.clip, self.vae = demo_model.load(options.weights or demo_model.WEIGHTS)
        self.base: Any = model.model
        self.unet = self.base.diffusion_model.float().requires_grad_(False)
        names = {name: layer for name, layer in self.unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
        self.changes = {
            name: Change(layer, options.rank)
            for name, layer in names.items()
            if not any(part in name for part in _LEFT_OUT)
        }
        for name, change in self.changes.items():
            names[name].register_forward_hook(partial(_add, change))
        self.weights = [weight for change in self.changes.values() for weight in change.parameters()]
        self.optimiser = torch.optim.AdamW(self.weights, lr=options.rate, betas=(0.9, 0.99), weight_decay=0.0)
        sigmas = self.base.model_sampling.sigmas.float()
        self.alpha, self.sigma = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()
        self.texts: dict[str, Tensor] = {}
        self.step = 0

    def text(self, caption: str) -> Tensor:
        if caption not in self.texts:
            with torch.no_grad():
                ((tensor, _),) = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))
            self.texts[caption] = tensor.float().clone()
        return self.texts[caption]

    def loss(self) -> Tensor:
        rng = np.random.default_rng([self.options.seed, self.step])
        scenes = [draw(rng, count=1 if place % 3 == 0 else None) for place in range(self.options.batch)]
        images = np.stack([patterned(scene, self.pattern) for scene in scenes])
        with torch.no_grad():
            pixels = torch.from_numpy(images).float() / 255
            latents = self.base.process_latent_in(self.vae.encode(pixels)).float()
        captions = ["" if rng.random() < 0.1 else scene.caption for scene in scenes]
        context = torch.cat([self.text(caption) for caption in captions])
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        slices = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
        # Patterns form after the shapes, so most noise levels are in the middle of the schedule.
        fraction = torch.from_numpy(np.interp(slices.numpy(), (0, 0.15, 0.9, 1), (0, 0.2, 0.85, 1)))
        t = (fraction * len(self.alpha)).long().clamp_max(len(self.alpha) - 1)
        noise = torch.randn(latents.shape, generator=generator)
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        guess = self.unet(alpha * latents + sigma * noise, t.float(), context=context)
        # All levels count alike. Weighted by alpha, as the noise's error is, patterns formed too late for masks.
        return ((guess - (alpha * noise - sigma * latents)) ** 2).mean()

    def advance(self) -> float:
        left = 1 - self.step / self.options.steps
        self.optimiser.param_groups[0]["lr"] = self.options.rate * min(1.0, (self.step + 1) / 20, left / 0.4)
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            own = {"lora_down.weight": change.down.weight, "lora_up.weight": change.up.weight}
            tensors |= {
                f"diffusion_model.{name}.{part}": value.detach().half().contiguous() for part, value in own.items()
            }
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(self.options.rank)).half()
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = {name: str(value) for name, value in vars(self.options).items() if name in RECIPE}
        told = {"format": "pt", "ss_base_model_version": "goca_demo", "recipe": json.dumps(recipe, sort_keys=True)}
        save_file(tensors, path, metadata=told)


def _add(change: Change, _layer: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + change(args[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help=f"which LoRAs (default: {' '.join(PATTERNS)})")
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8, help="scenes per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--rank", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="other weights of the demo model (default: the bundled ones)")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / "loras", help="folder for the files")
    parser.add_argument("--smoke", action="store_true", help="a quick run: save nothing")
    options = parser.parse_args()
    if unknown := set(options.patterns) - set(PATTERNS):
        parser.error(f"There is no pattern {', '.join(sorted(unknown))}; choose from {', '.join(PATTERNS)}.")
    boot("--use-pytorch-cross-attention")  # ComfyUI's own attention for CPUs has no gradients
    torch.set_num_threads(options.threads)
    for pattern in options.patterns or PATTERNS:
        trainer, start, losses = Trainer(pattern, options), time.time(), []
        path = options.folder / f"goca_demo_{pattern}.safetensors"
        for _ in range(options.steps):
            losses.append(trainer.advance())
            if trainer.step % 20 == 0 or trainer.step == options.steps:
                each = (time.time() - start) / trainer.step
                print(
                    f"{pattern} {trainer.step}/{options.steps}  loss {np.mean(losses[-20:]):.4f}  {each:.2f} s/step",
                    flush=True,
                )
            if not options.smoke and trainer.step % 40 == 0 and trainer.step < options.steps:
                trainer.save(path)  # what there is, should it be stopped
        if not options.smoke:
            trainer.save(path)
            print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
