"""What does semantic guidance cost? Measures a full-size SD1.5 with random weights, with plain and semantic guidance.

    python benchmarks/overhead_guidance.py

Prints a Markdown table: one step with a prompt and a negative prompt, with plain guidance, S-CFG's regions and GoCA's
regions, alternating. On a CPU it measures processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from boot import boot, use
from overhead import TOKENS, WORDS, build

PLAIN = "plain"


def conditioning(words: int, seed: int) -> list[Any]:
    """A random conditioning with the given number of words between a start and an end token."""
    wordbuild, tokens = use("goca_core.words.build"), use("goca_core.capture.conditioning")
    text, found = "", [wordbuild.Token(0, 49406, "<start>", "start")]
    for number in range(1, words + 1):
        word = f"word{number}"
        found.append(wordbuild.Token(number, number, word, "word", len(text), len(text) + len(word)))
        text += f"{word} "
    kinds = ["end", *["pad"] * (TOKENS - words - 2)]
    found += [wordbuild.Token(words + 1 + place, 49407, "<end>", kind) for place, kind in enumerate(kinds)]
    context = torch.randn(1, TOKENS, 768, generator=torch.Generator().manual_seed(seed))
    known = wordbuild.build(text, text, "clip-l", TOKENS, found)
    return tokens.attach([[context, {"pooled_output": None}]], known)


def step(model: Any, positive: list[Any], negative: list[Any], side: int) -> tuple[float, torch.Tensor]:
    """Seconds of one guided step, and its samples."""
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros(1, 4, side, side)
    noise = comfy.sample.prepare_noise(latent, 1)
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    with torch.inference_mode():
        samples = comfy.samplers.sample(
            model,
            noise,
            positive,
            negative,
            7.5,
            model.load_device,
            comfy.samplers.ksampler("euler"),
            torch.tensor([2.0, 0.0]),
            latent_image=latent,
            disable_pbar=True,
            seed=1,
        )
    if cuda:
        torch.cuda.synchronize()
    return clock() - start, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--repeat", type=int, default=5, help="steps of each kind, alternating; the median is reported")
    options = parser.parse_args()
    boot()
    torch.set_num_threads(1)
    scfg, semantic = use("goca_core.capture.guidance.patch"), use("goca_core.guidance.semantic")
    model, positive, negative = build(), conditioning(WORDS, 1), conditioning(0, 2)
    models = {PLAIN: model} | {rule: scfg.guide(model, semantic.Settings(rule)) for rule in semantic.REGION_RULES}
    side = options.size // 8
    plain = step(model, positive, negative, side)[1]
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.repeat):
        for name, guided in models.items():
            seconds, samples = step(guided, positive, negative, side)
            times[name].append(seconds)
            if torch.equal(samples, plain) != (name == PLAIN):
                sys.exit(
                    f"The timing is not valid: a step with {name} guidance should "
                    f"{'equal' if name == PLAIN else 'differ from'} the plain step."
                )
    median = {name: statistics.median(found) for name, found in times.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "1 CPU thread"
    print(f"SD1.5 at full size, {options.size}x{options.size}, cfg 7.5, torch {torch.__version__}, {where}\n")
    print(f"| guidance | one step (median of {options.repeat}) | ratio |\n|---|---|---|")
    for name, seconds in median.items():
        print(f"| {name} | {seconds:.2f} s | {seconds / median[PLAIN]:.3f} |")


if __name__ == "__main__":
    main()
