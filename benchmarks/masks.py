"""How long does it take to make masks of a recording? Measured on random recordings of the size of real ones.

    python benchmarks/masks.py                  on the CPU
    python benchmarks/masks.py --device cuda    on a GPU, with everything brought back to the CPU

Times, for recordings with either method, Mask From Tokens without its files: from the recording, which is on the CPU,
to masks there and to the small images that the browser gets. Half of the GPU's free memory may be used, as in
ComfyUI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.timing import medians
from goca_core.attention.record import Affinity, Attention, Defaults, Layer, Tokens
from goca_core.batches import Workplace
from goca_core.capture.options import RecordOptions
from goca_core.picture import sheets
from goca_core.pipeline import MaskRequest, as_scoring, make_masks
from goca_core.words.build import Token, build

TEXT = "a red cat sitting on green grass under a blue sky with white clouds near river"
REQUEST = MaskRequest("red cat\ngrass\nsky")


def random_recording(size: tuple[int, int], patch: int, layers: int, grid: tuple[int, int], frames: int) -> Attention:
    """A recording of one image or video: ``size`` of the latent, ``layers`` with one token per ``patch``², propagation on ``grid``."""
    generator = torch.Generator().manual_seed(0)
    words, start = [Token(0, 0, "<start>", "start")], 0
    for number, word in enumerate(TEXT.split(), start=1):
        start = TEXT.index(word, start)
        words.append(Token(number, number, word, "word", start, start + len(word)))
        start += len(word)
    tokens = Tokens(tuple(range(len(words))), True, 77, build(TEXT, TEXT, "clip-l", 77, words))

    def chances(*shape: int) -> Tensor:
        return torch.softmax(3 * torch.randn(*shape, generator=generator), -1)

    height, width = size[0] // patch, size[1] // patch
    made = tuple(
        Layer(
            f"layer.{number}",
            height,
            width,
            {method: chances(frames, height * width, tokens.count) for method in ("average", "dot-product")},
            {"dot-product similarity": torch.rand(frames, generator=generator) + 0.1},
        )
        for number in range(layers)
    )
    count = grid[0] * grid[1]
    affinity = Affinity(*grid, chances(frames, count, count))
    defaults = Defaults("dot-product", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 2)
    record = Attention("random", *size, 8, made, tokens, defaults, affinity)
    return replace(record, frames=frames, temporal_compression=4 if frames > 1 else 1)


def make(record: Attention, place: Workplace) -> list[Any]:
    """What Mask From Tokens gives: masks and background, and what the browser gets."""
    scoring = as_scoring(record, place.device)
    result = make_masks(scoring, REQUEST, each_word=True, place=place)
    shown: list[Any] = [
        sheets.mask_sheet(result),
        sheets.step_sheet(result, scoring),
        sheets.heat_sheet(result, scoring),
    ]
    shown += [result.table(), sheets.layer_weights_table(result, scoring.maps)]
    return [result.masks.to(place.results or "cpu"), result.background.to(place.results or "cpu"), *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where masks are made")
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is taken")
    options = parser.parse_args()
    device = torch.device(options.device)
    room = None if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // 2
    place = Workplace(device, room, torch.device("cpu"))
    records = {
        "an image of 1024x1024": random_recording((128, 128), 2, 57, (32, 32), 1),
        "a video of 33 frames, 832x480": random_recording((60, 104), 2, 30, (18, 32), 9),
    }
    with torch.inference_mode():
        actions: dict[str, Callable[[], Any]] = {}
        for name, record in records.items():
            auto = replace(record, defaults=RecordOptions(method="auto").defaults(record.defaults))
            actions |= {name: partial(make, record, place), f"{name}, auto": partial(make, auto, place)}
        seconds = medians(actions, options.repeat)
        print("| masks of | method paper | method auto |\n|---|---|---|")
        for name in records:
            print(f"| {name} | {seconds[name]:.3f} s | {seconds[f'{name}, auto']:.3f} s |")


if __name__ == "__main__":
    main()
