"""Train the bundled demo model on scenes that this script draws.

    python scripts/demo_model/train.py                      the full recipe (about two hours on two cores)
    python scripts/demo_model/train.py --resume             continue after an interruption
    python scripts/demo_model/train.py --steps 20 --repair 0 --smoke   check that everything runs; the pack stays as it is

Run it with ComfyUI's interpreter. ComfyUI is in ``COMFYUI_DIR`` or ``.host``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from goca_core.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, corrupt, draw
from goca_core.demo.wavelet import WaveletCodec
from scripts.boot import boot

ROOT = Path(__file__).resolve().parents[2]
# AdamW's learning rate as a fraction of Muon's, and the fraction of all steps over which the rate falls.
ADAM_RATE, COOLING = 0.5, 0.4
# The repair stage: its learning rate as a fraction, the fraction of images with a wrong object, and the noise level above
# which they are used.
REPAIR_RATE, CORRUPTED, REPAIR_FROM = 0.4, 0.4, 0.45
RECIPE = ("steps", "repair", "batch", "rate", "warmup", "average", "seed")


def vocabulary() -> list[int]:
    from comfy.sd1_clip import SD1Tokenizer

    text = " ".join([*COLOURS, *SHAPES, *BACKGROUNDS, "a an and on ,"])
    ids = {token for token, _ in SD1Tokenizer().tokenize_with_weights(text)["l"][0]}
    return sorted(ids)


class TextEncoder(nn.Module):
    """ComfyUI's CLIP text model with a small embedding table. ComfyUI's forward adds residuals in place and blocks gradients."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        from comfy.sd1_clip import SD1Tokenizer

        from goca_core.capture.demo_model import WIDTH, DemoTextModel

        model = DemoTextModel(device="cpu", dtype=torch.float32)
        self.body = model.clip_l.transformer.text_model
        self.projection = model.clip_l.transformer.text_projection
        self.body.embeddings.token_embedding = nn.Embedding(len(ids), WIDTH)
        self.register_buffer("ids", torch.tensor(ids))
        self.row = {token: row for row, token in enumerate(ids)}
        self.tokenizer = SD1Tokenizer()
        self.cache: dict[str, list[int]] = {}

    def tokens(self, captions: list[str]) -> Tensor:
        for caption in captions:
            if caption not in self.cache:
                pairs = self.tokenizer.tokenize_with_weights(caption)["l"][0]
                self.cache[caption] = [self.row[token] for token, _ in pairs]
        return torch.tensor([self.cache[caption] for caption in captions])

    def forward(self, rows: Tensor) -> Tensor:
        x = self.body.embeddings.token_embedding(rows) + self.body.embeddings.position_embedding.weight
        mask = torch.full((x.shape[1], x.shape[1]), -1e9, device=x.device).triu_(1)
        for layer in self.body.encoder.layers:
            h = layer.layer_norm1(x)
            q, k, v = (
                p(h).unflatten(-1, (layer.self_attn.heads, -1)).transpose(1, 2)
                for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)).transpose(1, 2).flatten(2)
            x = x + layer.self_attn.out_proj(h)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.body.final_layer_norm(x)


def initialise(unet: nn.Module, text: nn.Module) -> None:
    for module in [*unet.modules(), *text.modules()]:
        for kind in (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)  # ComfyUI's own classes skip this to load faster
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.3)
    embeddings = text.body.embeddings
    nn.init.normal_(embeddings.position_embedding.weight, 0, 0.1)
    # Residual branches start at zero, so that each block is an identity at first.
    for name, module in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class Optimiser:
    """Muon for the matrices inside the networks (convolutions count as matrices), AdamW for the rest.

    Muon gives every direction of a weight the same step size. Here it needs half as many steps as AdamW alone.
    """

    def __init__(self, live: nn.ModuleDict, *, iterations: int) -> None:
        # Muon takes only matrices. These share memory with the weights and only have another shape.
        self.matrices: list[tuple[nn.Parameter, Tensor]] = []
        others = []
        for name, weight in live.named_parameters():
            if weight.ndim < 2 or "embedding" in name or name in ("unet.input_blocks.0.0.weight", "unet.out.2.weight"):
                others.append(weight)
            else:
                self.matrices.append((weight, self._matrix(weight.data)))
        flat = [matrix for _, matrix in self.matrices]
        # Scale its steps to the size of AdamW's, so that one learning rate works for both.
        self.muon = torch.optim.Muon(
            flat, weight_decay=0.01, momentum=0.95, ns_steps=iterations, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0)

    @staticmethod
    def _matrix(weight: Tensor) -> Tensor:
        if not weight.is_contiguous():
            weight = weight.permute(0, 2, 3, 1)  # channels last, as the network's convolutions are stored
        return weight.view(len(weight), -1)

    def step(self, rate: float) -> None:
        for optimiser, factor in ((self.muon, 1.0), (self.adam, ADAM_RATE)):
            optimiser.param_groups[0]["lr"] = factor * rate
        for weight, matrix in self.matrices:
            if weight.grad is not None:
                # A gradient may have another memory layout than its weight.
                matrix.grad = self._matrix(torch.empty_like(weight).copy_(weight.grad))
        self.muon.step()
        self.adam.step()

    def state(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def resume(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


class Trainer:
    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Without AVX-512, a CPU needs ten times as long for a convolution in bfloat16 as for one in float32.
        self.fast_bfloat16 = self.device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
        from goca_core.capture.demo_model import build_unet

        self.base = build_unet(torch.float32, "cpu").to(self.device)
        self.unet = self.base.diffusion_model.requires_grad_(True).train()
        self.text = TextEncoder(vocabulary()).to(self.device).requires_grad_(True)
        initialise(self.unet, self.text)
        self.unet.to(memory_format=torch.channels_last)  # about a tenth faster on a CPU
        self.codec = WaveletCodec()
        self.live = nn.ModuleDict({"unet": self.unet, "text": self.text})
        self.average = {name: value.detach().clone() for name, value in self.live.named_parameters()}
        # Muon computes in bfloat16, and most of a smoke run's time would go there.
        self.optimiser = Optimiser(self.live, iterations=1 if options.smoke else 5)
        sigmas = self.base.model_sampling.sigmas.to(self.device)
        self.alpha, self.sigma = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()
        self.losses: list[float] = []
        self.step = 0

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """Target latents, latents to add noise to, and captions.

        The two kinds of latents differ in the repair stage: then the second kind contains one wrong object each.
        """
        # Seeded by the step, so that a resumed run uses the same images as an uninterrupted one.
        rng = np.random.default_rng([self.options.seed, step])
        # Scenes with a single object teach shapes fastest, because there is nothing else to mix it up with.
        drawn = [draw(rng, count=1 if place % 3 == 0 else None) for place in range(self.options.batch)]
        captions = [scene.caption if rng.random() >= 0.1 else "" for scene in drawn]
        latents = self.encode([scene.image for scene in drawn])
        if not self.repairs(step):
            return latents, latents, captions
        return latents, self.encode([corrupt(scene, rng) for scene in drawn]), captions

    def repairs(self, step: int) -> bool:
        return step >= self.options.steps

    def encode(self, images: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return self.codec.encode(pixels.float() / 127.5 - 1).to(self.device)

    def loss(self, step: int) -> Tensor:
        latents, noised, captions = self.batch(step)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        # One draw per equal slice of the schedule has less variance than independent draws.
        slices = torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)
        # Two thirds of the draws come from 40 to 90 percent of the schedule, where positions are visible and shapes settle.
        # In the repair stage, a fifth comes from the start of sampling, where colours settle.
        levels = (
            ((0, 0.22, 0.80, 1), (0, 0.4, 0.85, 1)) if self.repairs(step) else ((0, 0.28, 0.95, 1), (0, 0.4, 0.9, 1))
        )
        fraction = np.interp((slices / len(latents)).double().numpy(), *levels)
        t = (torch.from_numpy(fraction) * len(self.alpha)).long().clamp_max(len(self.alpha) - 1).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        if self.repairs(step):
            wrong = (torch.rand(len(latents), generator=generator) < CORRUPTED) & (
                torch.from_numpy(fraction) > REPAIR_FROM
            )
            noised = torch.where(wrong.view(-1, 1, 1, 1).to(self.device), noised, latents)
        noisy = alpha * noised + sigma * noise
        # The wrong object counts as noise.
        target = alpha * (noisy - alpha * latents) / sigma - sigma * latents
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast_bfloat16):
            context = self.text(self.text.tokens(captions).to(self.device))
            guess = self.unet(noisy, t.float(), context=context)
        # Weighted by alpha, because at high noise most of the error is random.
        smooth, details = (alpha * (guess.float() - target) ** 2).split((3, 9), 1)
        return (smooth.mean() + details.mean()) / 2

    def rate(self, step: int) -> float:
        """The learning rate: it warms up, stays constant, and falls to zero over the last part.

        While it is constant, a run can still be made longer. In the repair stage it warms up again and falls at once.
        """
        total = self.options.steps
        if self.repairs(step):
            left = 1 - (step - total) / self.options.repair
            return REPAIR_RATE * self.options.rate * min(1.0, (step - total + 1) / self.options.warmup, left)
        return self.options.rate * min(1.0, (step + 1) / self.options.warmup, (total - step) / (total * COOLING))

    def advance(self) -> float:
        loss = self.loss(self.step)
        self.live.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.live.parameters(), 1.0)
        self.optimiser.step(self.rate(self.step))
        self.step += 1
        keep = min(self.options.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.live.named_parameters():
                self.average[name].lerp_(value, 1 - keep)
        return loss.item()

    def save_checkpoint(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "live": self.live.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state(),
            "losses": self.losses,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.live.load_state_dict(state["live"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimiser.resume(state["optimiser"])
        self.step, self.losses = state["step"], state["losses"]

    def export(self, path: Path) -> None:
        """Write the averaged weights in half precision, named as ``goca_core/capture/demo_model.py`` reads them."""
        live = copy.deepcopy(self.live).cpu()
        live.load_state_dict({name: value.cpu() for name, value in self.average.items()}, strict=False)
        tensors = {f"unet.{name}": value for name, value in live["unet"].state_dict().items()}
        text = live["text"]
        for name, value in text.body.state_dict().items():
            if name != "embeddings.token_embedding.weight":
                tensors[f"text.text_model.{name}"] = value
        # Not trained, because nothing uses the pooled output, but ComfyUI's class expects it.
        tensors["text.text_projection.weight"] = torch.eye(text.body.embeddings.token_embedding.embedding_dim)
        tensors["text.token_rows"] = text.body.embeddings.token_embedding.weight.detach()
        half = {name: value.detach().to(torch.float16).contiguous() for name, value in tensors.items()}
        half["text.token_ids"] = text.ids.cpu().to(torch.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = {name: str(value) for name, value in vars(self.options).items() if name in RECIPE}
        save_file(
            half, path, metadata={"format": "pt", "step": str(self.step), "recipe": json.dumps(recipe, sort_keys=True)}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the main training")
    parser.add_argument("--repair", type=int, default=1500, help="steps of the repair stage after the main training")
    parser.add_argument("--batch", type=int, default=12, help="scenes per step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate (see Optimiser)")
    parser.add_argument("--warmup", type=int, default=100, help="warm-up steps of the learning rate")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--folder", type=Path, default=ROOT / "training", help="folder for checkpoints and stages")
    parser.add_argument("--stages", type=int, default=500, help="save the weights every STAGES steps")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo" / "goca_demo.safetensors", help="file for the final weights"
    )
    parser.add_argument("--until", type=int, help="stop at this step, to resume later")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--smoke", action="store_true", help="a quick run: save to --folder, not to --output")
    options = parser.parse_args()
    boot("--use-pytorch-cross-attention")  # ComfyUI's own attention for CPUs has no gradients
    trainer = Trainer(options)
    checkpoint = options.folder / "checkpoint.pt"
    if options.resume and checkpoint.is_file():
        trainer.resume(checkpoint)
        print(f"resumed at step {trainer.step}", flush=True)
    size = sum(p.numel() for p in trainer.live.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(trainer.text.ids)} tokens, on {trainer.device}", flush=True)
    start, first = time.time(), trainer.step
    whole = options.steps + options.repair
    last = min(whole, options.until or whole)
    while trainer.step < last:
        trainer.losses.append(trainer.advance())
        if not math.isfinite(trainer.losses[-1]):
            sys.exit(f"The loss at step {trainer.step} is not finite. Start again with a lower --rate.")
        if trainer.step % 20 == 0 or trainer.step == last:
            each = (time.time() - start) / (trainer.step - first)
            print(
                f"step {trainer.step:5d}/{whole}  loss {np.mean(trainer.losses[-100:]):.4f}  "
                f"{each:.2f} s/step  {each * (last - trainer.step) / 60:.0f} min left",
                flush=True,
            )
        if trainer.step % 100 == 0:
            trainer.save_checkpoint(checkpoint)
        if trainer.step % options.stages == 0:
            trainer.export(options.folder / f"stage_{trainer.step:05d}.safetensors")
    trainer.save_checkpoint(checkpoint)
    (options.folder / "loss.json").write_text(json.dumps([round(loss, 5) for loss in trainer.losses]))
    if last < whole:
        print(f"stopped at step {trainer.step}; continue with --resume", flush=True)
        return
    output = options.folder / "smoke.safetensors" if options.smoke else options.output
    trainer.export(output)
    print(f"wrote {output.name}, {output.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
