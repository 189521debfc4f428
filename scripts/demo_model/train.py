"""Train a demo model on scenes that this script draws.

    python scripts/demo_model/train.py --kind shapes        64x64 shapes: about two hours on two cores
    python scripts/demo_model/train.py --kind things --minutes 10    128x128 things: on a GPU, for so many minutes
    python scripts/demo_model/train.py --resume             continue after an interruption
    python scripts/demo_model/train.py --steps 20 --smoke   check that everything runs; the pack stays as it is

Run it with ComfyUI's interpreter. ComfyUI is in ``COMFYUI_DIR`` or ``.host``.
"""

# ruff: noqa: E402 - a budget in minutes includes the time that the imports take
from __future__ import annotations

import time

BEGIN = time.time()

import argparse
import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from goca_core.demo.storage import compress, expand
from scripts.boot import boot
from scripts.demo_model.networks import TextEncoder, initialise
from scripts.demo_model.optimiser import Optimiser
from scripts.demo_model.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ("kind", "steps", "minutes", "repair", "batch", "rate", "warmup", "average", "seed")
# Compiling that takes longer does not pay in a run of minutes.
COMPILE_SECONDS = 120
# Between two reports, the CPU never waits for the GPU.
REPORT_SECONDS, SAVE_SECONDS = 5, 60


class Compiler:
    """Compiles the networks in another process, while this one already trains. It can be stopped, and may fail.

    What it compiles is kept in torch's cache, so that this process then needs only seconds for the same.
    """

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--only-compile"]
        self.process: subprocess.Popen | None = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, BEGIN + COMPILE_SECONDS - time.time()))

    def done(self) -> bool:
        """Whether it has just succeeded. It answers that once."""
        if self.process is None:
            return False
        if self.process.poll() is None:
            if time.time() > BEGIN + COMPILE_SECONDS:
                self.stop()
                print(f"not compiled: it took more than {COMPILE_SECONDS} seconds", flush=True)
            return False
        code, self.process = self.process.returncode, None
        if code:
            print(f"not compiled: it failed with exit code {code}", flush=True)
        return code == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Trainer:
    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        # Without AVX-512, a CPU needs ten times as long for a convolution in bfloat16 as for one in float32.
        self.fast_bfloat16 = self.device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
        import comfy.ops

        from goca_core.capture.demo_model import build_unet, network_config

        # On a GPU, ComfyUI's own sets the order of torch's kernels each time, which a compiler may not follow.
        comfy.ops.scaled_dot_product_attention = F.scaled_dot_product_attention
        self.recipe = RECIPES[options.kind](options, self.device)
        self.spread: Tensor | None = None
        if (spread := self.recipe.measure_spread()) is not None:
            self.use_spread(spread)
        config = network_config(self.recipe.levels, self.recipe.width, self.recipe.multipliers, self.recipe.blocks)
        self.base = build_unet(torch.float32, "cpu", config, self.spread).to(self.device)
        self.unet = self.base.diffusion_model.requires_grad_(True).train()
        self.text = TextEncoder(self.recipe.words).to(self.device).requires_grad_(True)
        initialise(self.unet, self.text)
        self.unet.to(memory_format=torch.channels_last)  # about a tenth faster on a CPU
        self.live = nn.ModuleDict({"unet": self.unet, "text": self.text})
        self.weights = dict(self.live.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        # Muon computes in bfloat16, and most of a smoke run's time on a CPU would go there.
        self.optimiser = Optimiser(self.live, iterations=1 if options.smoke and self.device.type == "cpu" else 5)
        self.sigmas = self.base.model_sampling.sigmas.to(self.device)
        self.forward = self.eager
        self.losses: list[float] = []
        self.fresh: list[Tensor] = []
        self.step, self.before = 0, 0.0

    def use_spread(self, spread: Tensor) -> None:
        self.spread = spread
        self.recipe.use_spread(spread)

    # -- one step ----------------------------------------------------------------------------------------------------------

    def eager(self, noisy: Tensor, level: Tensor, rows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast_bfloat16):
            # Not through `forward`, whose wrappers for other packs a compiler cannot follow.
            return self.unet._forward(noisy, level, self.text(rows), transformer_options={})

    def loss(self, step: int, repairs: bool) -> Tensor:
        with torch.no_grad():
            batch = self.recipe.batch(step, repairs, self.text)
            sigma = self.sigmas[batch.step]
            noised = batch.noised + sigma.view(-1, 1, 1, 1) * batch.noise
            sampling = self.base.model_sampling
            noisy = sampling.calculate_input(sigma, noised).contiguous(memory_format=torch.channels_last)
            target = self.target(sigma, noised, batch.wanted)
        guess = self.forward(noisy, batch.step.float(), batch.rows)
        return self.recipe.error((guess.float() - target) ** 2, sigma)

    def target(self, sigma: Tensor, noised: Tensor, wanted: Tensor) -> Tensor:
        """What the network should return, so that ComfyUI's sampling denoises to ``wanted``: v. A wrong object is noise."""
        if self.spread is not None:
            return self.base.model_sampling.target(sigma, noised, wanted)
        level = sigma.view(-1, 1, 1, 1)
        both = (1 + level**2).sqrt()
        return (noised / both**2 - wanted) * both / level

    def advance(self, progress: float) -> None:
        loss = self.loss(self.step, self.recipe.repairs(self.step, progress))
        self.live.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0, foreach=True)
        self.optimiser.step(self.recipe.rate(self.step, progress))
        self.step += 1
        keep = min(self.options.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - keep)
        self.fresh.append(loss.detach())

    def flush(self) -> None:
        """Read the losses since the last time from the device, which waits for it."""
        if self.fresh:
            self.losses += torch.stack(self.fresh).tolist()
            self.fresh = []
        if self.losses and not math.isfinite(self.losses[-1]):
            sys.exit(f"The loss at step {self.step} is not finite. Start again with a lower --rate.")

    @property
    def seconds(self) -> float:
        """Since the start of the process, and of all runs that this one continues."""
        return self.before + time.time() - BEGIN

    def progress(self) -> float:
        return self.recipe.progress(self.step, self.seconds)

    # -- compiled or not ---------------------------------------------------------------------------------------------------

    def timed(self, steps: int) -> float:
        """Seconds per step over some real steps. The first is left out."""
        self.advance(self.progress())
        self.flush()
        start = time.time()
        for _ in range(steps):
            self.advance(self.progress())
        self.flush()
        return (time.time() - start) / steps

    def compiled(self) -> None:
        self.forward = torch.compile(self.eager, dynamic=False)
        self.advance(self.progress())
        self.flush()

    def choose_forward(self) -> None:
        """Keep the faster way, measured on real steps: compiled or not."""
        plain = self.timed(4)
        start = time.time()
        try:
            self.compiled()
            took, fast = time.time() - start, self.timed(4)
        except Exception as error:
            self.forward = self.eager
            print(f"not compiled: {type(error).__name__}: {str(error)[:400]}", flush=True)
            return
        if fast > 0.97 * plain:
            self.forward = self.eager
        print(
            f"{1000 * plain:.0f} ms/step; compiled (in {took:.0f} s) {1000 * fast:.0f} ms/step: "
            f"{'used' if self.forward is not self.eager else 'not used'} from step {self.step}",
            flush=True,
        )

    # -- files -------------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, path: Path) -> None:
        self.flush()
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "live": self.live.state_dict(),
            "average": self.average,
            "spread": self.spread,
            "optimiser": self.optimiser.state(),
            "losses": self.losses,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.live.load_state_dict(state["live"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        if state["spread"] is not None:
            self.use_spread(state["spread"])
            self.base.model_sampling.spread.copy_(state["spread"].view(1, -1, 1, 1))
        self.optimiser.resume(state["optimiser"])
        self.step, self.before, self.losses = state["step"], state["seconds"], state["losses"]

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights, named as ``goca_core/capture/demo_model.py`` reads them."""
        found = {**self.live.state_dict(), **self.average}
        tensors = {name: value for name, value in found.items() if name.startswith("unet.")}
        for name, value in found.items():
            if name.startswith("text.body.") and not name.endswith("token_embedding.weight"):
                tensors[name.replace("text.body.", "text.text_model.")] = value
        rows = self.average["text.body.embeddings.token_embedding.weight"]
        # Not trained, because nothing uses the pooled output, but ComfyUI's class expects it.
        tensors["text.text_projection.weight"] = torch.eye(rows.shape[1])
        tensors["text.token_rows"], tensors["text.token_ids"] = rows, self.text.ids.to(torch.int32)
        if self.spread is not None:
            tensors["latent.spread"] = self.spread
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def export(self, path: Path) -> None:
        """Write the averaged weights: the UNet's in 8 bits for things, all in half precision for shapes."""
        tensors = self.tensors()
        unet = {name: value for name, value in tensors.items() if name.startswith("unet.")}
        stored = {
            name: value if name in unet or not value.is_floating_point() else value.half()
            for name, value in tensors.items()
        }
        if self.options.kind == "things":
            stored.update(compress(unet))
        else:
            stored.update({name: value.half() for name, value in unet.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = {name: str(value) for name, value in vars(self.options).items() if name in RECORDED}
        about = {"format": "pt", "kind": self.options.kind, "step": str(self.step), "seconds": str(round(self.seconds))}
        save_file(stored, path, metadata={**about, "recipe": json.dumps(recipe, sort_keys=True)})

    @torch.no_grad()
    def storage_report(self) -> str:
        """The loss on unseen scenes of the averaged weights, in full precision and as they are stored."""
        self.forward = self.eager  # compiled code would be compiled again, for no gradients
        kept = {name: value.clone() for name, value in self.weights.items()}
        half = {name: value.half().float() for name, value in self.average.items()}
        eight = {name: value.float() for name, value in expand(compress(self.average)).items()}
        eight = {name: value if name.startswith("unet.") else half[name] for name, value in eight.items()}
        found = []
        for chosen in (self.average, half, eight):
            for name, value in self.weights.items():
                value.data.copy_(chosen[name])
            found.append(torch.stack([self.loss(10**7 + number, False) for number in range(4)]).mean().item())
        for name, value in self.weights.items():
            value.data.copy_(kept[name])
        return "loss on unseen scenes: {:.5f}; in 16 bits {:.5f}; in 8 bits {:.5f}".format(*found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=tuple(RECIPES), default="shapes", help="what the scenes show")
    parser.add_argument("--minutes", type=float, help="things: stop after so many minutes, starting up included")
    parser.add_argument("--steps", type=int, help="steps of the main training (shapes: 6000)")
    parser.add_argument("--repair", type=int, help="shapes: steps of the second stage, after the main training (1500)")
    parser.add_argument("--batch", type=int, help="scenes per step (shapes: 12, things: 256)")
    parser.add_argument(
        "--rate", type=float, help="peak learning rate, see optimiser.py (shapes: 1.5e-3, things: 3e-3)"
    )
    parser.add_argument("--warmup", type=int, default=100, help="warm-up steps of the learning rate")
    parser.add_argument("--average", type=float, help="decay of the averaged weights (shapes: 0.999, things: 0.998)")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--side", type=int, help="things: side of the images, if not 128, for experiments")
    parser.add_argument("--folder", type=Path, default=ROOT / "training", help="folder for checkpoints and stages")
    parser.add_argument("--stages", type=int, help="save the weights so many times on the way (shapes: 15, things: 8)")
    parser.add_argument(
        "--output", type=Path, help="file for the final weights (default: the bundled ones of the kind)"
    )
    parser.add_argument("--until", type=int, help="stop at this step, to resume later")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--smoke", action="store_true", help="a quick run: save to --folder, not to --output")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile on a GPU")
    parser.add_argument("--only-compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke and options.kind == "things" and not torch.cuda.is_available():
        options.batch, options.side = options.batch or 4, options.side or 32
    for name, value in RECIPES[options.kind].defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.kind == "things" and options.steps is None and options.minutes is None:
        options.minutes = 10.0
    if options.output is None:
        options.output = ROOT / "demo" / ("goca_demo.safetensors" if options.kind == "shapes" else "things.safetensors")
    return options


def train(trainer: Trainer, options: argparse.Namespace, compiler: Compiler | None) -> bool:
    """Train until the run ends or --until. Whether the run has ended."""
    marks = [mark for mark in trainer.recipe.stage_marks(options.stages) if mark > trainer.progress()]
    checkpoint = options.folder / "checkpoint.pt"
    shown = saved = start = time.time()
    first = trainer.step

    def report() -> None:
        trainer.flush()
        recent = trainer.losses[-100:]
        print(
            f"step {trainer.step:5d}  {100 * trainer.progress():3.0f} %  loss {sum(recent) / len(recent):.4f}  "
            f"{1000 * (time.time() - start) / (trainer.step - first):.0f} ms/step",
            flush=True,
        )

    if options.smoke and trainer.device.type == "cuda":
        print(f"{1000 * trainer.timed(5):.0f} ms/step at batch {options.batch}, not compiled", flush=True)
        if compiler is not None:
            compiler.wait()
    while trainer.progress() < 1 and trainer.step != options.until:
        if compiler is not None and compiler.done():
            trainer.choose_forward()
            start, first = time.time() - 1e-3, trainer.step - 1
        trainer.advance(trainer.progress())
        if time.time() - shown > REPORT_SECONDS:
            shown = time.time()
            report()
        if time.time() - saved > SAVE_SECONDS:
            saved = time.time()
            trainer.save_checkpoint(checkpoint)
        if marks and trainer.progress() >= marks[0]:
            del marks[0]
            trainer.export(options.folder / f"stage_{trainer.step:05d}.safetensors")
    report()
    trainer.save_checkpoint(checkpoint)
    return trainer.progress() >= 1


def main() -> None:
    options = parse()
    compiler = None
    if torch.cuda.is_available() and not options.no_compile and not options.only_compile:
        compiler = Compiler()
    try:
        run(options, compiler)
    finally:
        if compiler is not None:
            compiler.stop()


def run(options: argparse.Namespace, compiler: Compiler | None) -> None:
    boot("--use-pytorch-cross-attention")  # ComfyUI's own attention for CPUs has no gradients
    trainer = Trainer(options)
    if options.only_compile:
        trainer.compiled()
        return
    checkpoint = options.folder / "checkpoint.pt"
    if options.resume and checkpoint.is_file():
        trainer.resume(checkpoint)
        print(f"resumed at step {trainer.step}", flush=True)
    size = sum(value.numel() for value in trainer.weights.values())
    print(
        f"{size / 1e6:.2f} M parameters, {len(trainer.text.ids)} tokens, on {trainer.device}, "
        f"ready after {time.time() - BEGIN:.0f} s",
        flush=True,
    )
    ended = train(trainer, options, compiler)
    losses: list[Any] = [round(loss, 5) for loss in trainer.losses]
    (options.folder / "loss.json").write_text(json.dumps(losses))
    if not ended:
        print(f"stopped at step {trainer.step}; continue with --resume", flush=True)
        return
    output = options.folder / "smoke.safetensors" if options.smoke else options.output
    trainer.export(output)
    print(f"wrote {output.name}, {output.stat().st_size / 1e6:.1f} MB", flush=True)
    if options.kind == "things":
        print(trainer.storage_report(), flush=True)


if __name__ == "__main__":
    main()
