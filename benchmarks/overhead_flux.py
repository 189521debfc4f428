"""What does recording cost with joint attention? Measures Flux.1 at full width, with fewer blocks and random weights.

    python benchmarks/overhead_flux.py

Prints a Markdown table: a recorded forward pass compared with a plain one, exact and with layers compared on 32x32 tokens,
and the peak memory compared with an implementation that keeps the joint attention of every layer. The real model has 19
double and 38 single blocks of the same size. Each memory value is measured in its own process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import measure_peaks, peak_memory, seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use

TOKENS, WORDS = 256, 12
SIGMA = 0.407
FLUX = dict(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
)


def build(double: int, single: int) -> Any:
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.Flux({**FLUX, "depth": double, "depth_single_blocks": single})
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32, None)
    model = config.get_model({}, "", device=device)
    # Drawing billions of numbers takes long, and only their size matters here, so a million of them are repeated.
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = 1 / math.sqrt(weight[0].numel())
                for part in weight.view(-1).split(len(drawn)):
                    part.copy_(drawn[: len(part)] * scale)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def conditioning() -> list[Any]:
    """A random conditioning with a word map, as Encode Prompt (GoCA) makes it."""
    words, tokens, wordbuild = (use(f"goca_core.{name}") for name in ("words", "capture.tokens", "wordbuild"))
    text = [f"word{number}" for number in range(WORDS)]
    plain, found, start = " ".join(text), [], 0
    for number, word in enumerate(text):
        found.append(wordbuild.Token(number, number, word, "word", start, start + len(word)))
        start += len(word) + 1
    found.append(wordbuild.Token(WORDS, 1, "</s>", "end"))
    found += [wordbuild.Token(place, 0, "<pad>", "pad") for place in range(WORDS + 1, TOKENS)]
    known: words.WordMap = wordbuild.build(plain, plain, "t5", TOKENS, found)
    generator = torch.Generator().manual_seed(1)
    context, pooled = torch.randn(1, TOKENS, 4096, generator=generator), torch.randn(1, 768, generator=generator)
    return tokens.attach([[context, {"pooled_output": pooled}]], known)


def sample(model: Any, positive: list[Any], side: int) -> torch.Tensor:
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros(1, 16, side, side)
    noise, sigmas = comfy.sample.prepare_noise(latent, 1), torch.tensor([SIGMA, 0.0])
    euler = comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        return comfy.samplers.sample(
            model, noise, positive, [], 1.0, model.load_device, euler, sigmas,
            latent_image=latent, disable_pbar=True, seed=1,
        )  # fmt: skip


def recorded(model: Any, limit: str) -> Any:
    recorder = use("goca_core.capture.recorder")
    return recorder.record(model, recorder.Window(), grid_limit=recorder.GRIDS[limit])[0]


def keeping_all(model: Any) -> Any:
    """The simple way: keep the joint attention of every head of every layer in half precision."""
    reduce = use("goca_core.capture.reduce.call")
    kept: list[torch.Tensor] = []

    def override(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = reduce.bind(args, kwargs)
        heads = zip(call.q[0].float(), call.k[0].float(), strict=True)
        kept.append(torch.stack([(q @ k.T * call.scale).softmax(-1).half() for q, k in heads]))
        return function(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    patched.kept = kept  # lives as long as the model does
    return patched


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "recorded": partial(recorded, limit="auto"),
    "recorded, 32x32": partial(recorded, limit="32x32"),
    "keeping all": keeping_all,
}


def peak(variant: str, options: argparse.Namespace) -> int:
    """Peak memory of one forward pass in MB, measured in this process (which should do nothing else)."""
    boot("--use-pytorch-cross-attention")
    model, positive = build(options.double, options.single), conditioning()
    sample(VARIANTS[variant](model), positive, options.size // 8)
    return peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels")
    parser.add_argument("--double", type=int, default=1, help="double blocks")
    parser.add_argument("--single", type=int, default=2, help="single blocks")
    parser.add_argument(
        "--repeat", type=int, default=3, help="forward passes of each kind, alternating; the median is reported"
    )
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak(options.peak, options)))
        return
    shape = (f"--{name}={getattr(options, name)}" for name in ("size", "double", "single"))
    peaks = measure_peaks(__file__, VARIANTS, *shape)
    boot("--use-pytorch-cross-attention")
    model, positive = build(options.double, options.single), conditioning()
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS if variant != "keeping all"}
    for _ in range(options.repeat + 1):  # the first round warms up
        for variant, found in times.items():
            found.append(seconds(partial(sample, VARIANTS[variant](model), positive, options.size // 8)))
    forward = {variant: statistics.median(found[1:]) for variant, found in times.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(
        f"Flux.1 with {options.double} double and {options.single} single blocks, {options.size}x{options.size}, {where}\n"
    )
    print("| | one forward pass | ratio | peak memory | extra memory |\n|---|---|---|---|---|")
    for variant, found in peaks.items():
        time = forward.get(variant)
        cost = ("", "") if time is None else (f"{time:.1f} s", f"{time / forward['plain']:.2f}")
        row = (variant, *cost, f"{found} MB", f"+{found - peaks['plain']} MB")
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
