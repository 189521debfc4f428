"""What does recording cost? Measures a full-size SD1.5 with random weights, with and without recording.

    python benchmarks/overhead.py

Prints a Markdown table: one recorded forward pass compared with a plain one, a sampling run with the default step window
compared with one without recording, and the peak memory compared with an implementation that keeps all maps. Each memory
value is measured in its own process, because the system only reports the peak of a whole process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use

SD15 = dict(
    use_checkpoint=False,
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[2, 2, 2, 2],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    channel_mult=[1, 2, 4, 4],
    transformer_depth_middle=1,
    transformer_depth_output=[1] * 9 + [0] * 3,
    context_dim=768,
    use_spatial_transformer=True,
    use_linear_in_transformer=False,
    adm_in_channels=None,
    legacy=False,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)
TOKENS = 77
# The number of words in a prompt of ordinary length.
WORDS = 12


def build() -> Any:
    """SD1.5 as ComfyUI builds it, with random weights scaled to keep activations near one."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(SD15)
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float16 if device.type == "cuda" else torch.float32, None)
    model = config.get_model({}, "", device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()), generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def conditioning() -> list[Any]:
    """A random conditioning with a word map, as Encode Prompt (GoCA) makes it."""
    words, tokens = use("goca_core.words.word_map"), use("goca_core.capture.conditioning")
    text = [f"word{number}" for number in range(WORDS)]
    starts = [sum(len(word) + 1 for word in text[:number]) for number in range(WORDS)]
    known = words.WordMap(
        " ".join(text),
        " ".join(text),
        "clip-l",
        TOKENS,
        tuple(
            words.Word(word, start, start + len(word), (number + 1,), 1, True)
            for number, (word, start) in enumerate(zip(text, starts, strict=True))
        ),
        (),
        (0, WORDS + 1),
        tuple(range(WORDS + 2, TOKENS)),
    )
    context = torch.randn(1, TOKENS, 768, generator=torch.Generator().manual_seed(1))
    return tokens.attach([[context, {"pooled_output": None}]], known)


def sample(
    model: Any, positive: list[Any], sigmas: torch.Tensor, side: int, callback: Callable[..., None] | None = None
) -> torch.Tensor:
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros(1, 4, side, side)
    with torch.inference_mode():
        return comfy.samplers.sample(
            model,
            comfy.sample.prepare_noise(latent, 1),
            positive,
            [],
            1.0,
            model.load_device,
            comfy.samplers.ksampler("euler"),
            sigmas,
            latent_image=latent,
            callback=callback,
            disable_pbar=True,
            seed=1,
        )


def recorded(model: Any) -> Any:
    recorder = use("goca_core.capture.recorder")
    return recorder.record(model, recorder.Window())[0]


def keeping_all(model: Any) -> Any:
    """The simple way: keep the attention of every head of every layer in half precision until sampling is done."""
    reduce = use("goca_core.capture.reduce.call")
    kept: list[torch.Tensor] = []

    def override(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = reduce.bind(args, kwargs)
        kept.append((call.q.float() @ call.k.float().transpose(-1, -2) * call.scale).softmax(-1).half())
        return function(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    patched.kept = kept  # lives as long as the model does
    return patched


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "recorded": recorded,
    "keeping all": keeping_all,
}


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def laps(model: Any, positive: list[Any], sigmas: torch.Tensor, side: int) -> list[float]:
    """Seconds of every step of a run, then of everything after the last step."""
    marks = [time.perf_counter()]

    def mark(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    sample(model, positive, sigmas, side, mark)
    mark()
    return [end - start for start, end in pairwise(marks)]


def peak(variant: str, side: int) -> int:
    """Peak memory of one forward pass in MB, measured in this process (which should do nothing else)."""
    boot()
    model, positive = build(), conditioning()
    sample(VARIANTS[variant](model), positive, torch.tensor([0.346, 0.0]), side)
    return peak_memory()


def peak_memory() -> int:
    """The peak memory of this process in MB: GPU memory, or system memory if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure_peaks(script: str, variants: Iterable[str], *arguments: str) -> dict[str, int]:
    """What ``script --peak VARIANT`` prints for each variant, each in its own process.

    The variable makes glibc return freed blocks of a megabyte and more to the system at once. Otherwise the peak would also
    count memory that the allocator only keeps for later, and that differs from run to run.
    """
    peaks, environment = {}, {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    for variant in variants:
        command = [sys.executable, script, "--peak", variant, *arguments]
        lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
        peaks[variant] = json.loads(lines[-1])
    return peaks


def ratio(found: dict[str, float]) -> str:
    return f"{found['recorded'] / found['plain']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--repeat", type=int, default=5, help="forward passes of each kind, alternating; the median is reported"
    )
    parser.add_argument("--runs", type=int, default=1, help="pairs of sampling runs of each kind, alternating")
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    side = options.size // 8
    if options.peak:
        print(json.dumps(peak(options.peak, side)))
        return
    peaks = measure_peaks(__file__, VARIANTS, f"--size={options.size}")
    boot()
    import comfy.samplers

    model, positive = build(), conditioning()
    one = torch.tensor([0.346, 0.0])
    sample(model, positive, one, side)
    times: dict[str, list[float]] = {"plain": [], "recorded": []}
    for _ in range(options.repeat):
        for variant, found in times.items():
            found.append(seconds(partial(sample, VARIANTS[variant](model), positive, one, side)))
    forward = {variant: statistics.median(found) for variant, found in times.items()}
    schedule = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", options.steps)
    runs: dict[str, list[list[float]]] = {variant: [] for variant in times}
    # The order is plain, recorded, recorded, plain: a machine that gets slower or faster then favours neither.
    for variant in [*times, *reversed(times)] * options.runs:
        runs[variant].append(laps(VARIANTS[variant](model), positive, schedule, side))
    # Each step counts with its best time, because other work on the machine slows down some steps of some runs.
    run = {variant: sum(map(min, zip(*found, strict=True))) for variant, found in runs.items()}
    extra = {variant: peaks[variant] - peaks["plain"] for variant in ("recorded", "keeping all")}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"SD1.5 at full size, {options.size}x{options.size}, batch 1, torch {torch.__version__}, {where}\n")
    rows = [
        (
            f"one recorded forward pass (median of {options.repeat})",
            *(f"{forward[v]:.2f} s" for v in times),
            ratio(forward),
        ),
        (
            f"{options.steps} steps, default window (best of {2 * options.runs} for each step)",
            *(f"{run[v]:.1f} s" for v in times),
            ratio(run),
        ),
        ("peak memory", *(f"{peaks[v]} MB" for v in times), f"+{extra['recorded']} MB"),
        (
            "peak memory, keeping all maps",
            *(f"{peaks[v]} MB" for v in ("plain", "keeping all")),
            f"+{extra['keeping all']} MB, {extra['keeping all'] / max(1, extra['recorded']):.0f} times as much",
        ),
    ]
    print("| | without | recorded | ratio |\n|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
