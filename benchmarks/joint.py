"""What is the best way to get the text columns and the self-attention of a joint attention call? Compares all of them.

    python benchmarks/joint.py

Prints a Markdown table: the cost of each way as a multiple of the attention call itself, and its error relative to the
softmax in double precision. The text columns come from (a) a pass over blocks of query rows, (b) fused attention with
one-hot values, or (c) the logarithm of the denominators from the fused kernel. Ways (a) and (c) are also measured with
self-attention, (a) on the image's own grid and both on a grid with a quarter of its tokens. The recorder's own code is in
``goca_core/capture/joint.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from overhead import seconds
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from boot import boot, use

TEXT, KEPT = 512, 20


def exact(call: Any, spans: Any, rows: Tensor) -> Tensor:
    """Text columns of some rows of the image, in double precision."""
    queries = call.q[:, :, spans.image][:, :, rows].double()
    logits = queries @ call.k.double().transpose(-1, -2) * call.scale
    return torch.softmax(logits, -1)[..., :KEPT].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--heads", type=int, default=4, help="attention heads; Flux has 24, but the ratios hardly depend on it"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--side", type=int, default=64, help="side of the image in tokens; 64 is 1024 x 1024 pixels")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median is reported")
    options = parser.parse_args()
    boot()
    family, film, joint, reduce = (use(f"goca_core.capture.{name}") for name in ("family", "film", "joint", "reduce"))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    image, grid = options.side**2, (options.side, options.side)
    shape = (1, options.heads, TEXT + image, options.width)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    call = reduce.Call(q, k, v, None, options.width**-0.5)
    spans = family.text_first()(TEXT + image, TEXT, image, 0)
    columns = reduce.Columns.make(TEXT, TEXT, tuple(range(KEPT)), False, device)
    weights = {"average": torch.full((1, image, options.heads), 1 / options.heads, device=device)}
    quarter = (options.side // 2, options.side // 2)

    def ours(fused: bool, targets: list[tuple[int, int]]) -> Tensor:
        joint.FUSED.clear()
        joint.FUSED.update({device.type} if fused else set())
        selves = film.FilmMaps(grid, targets) if targets else None
        return joint.joint_maps(call.queries(spans.image), spans, weights, columns, selves)["average"]

    def one_hot() -> Tensor:
        values = torch.zeros_like(v)
        values[:, :, range(KEPT), range(KEPT)] = 1
        return F.scaled_dot_product_attention(q[:, :, spans.image], k, values, scale=call.scale)[..., :KEPT].mean(1)

    ways: dict[str, Callable[[], Tensor]] = {
        "text: (a) pass": lambda: ours(False, []),
        "text: (b) one-hot values": one_hot,
        "text: (c) fused denominators": lambda: ours(True, []),
        "text and self-attention, own grid: (a)": lambda: ours(False, [grid]),
        "text and self-attention, quarter grid: (a)": lambda: ours(False, [quarter]),
        "text and self-attention, quarter grid: (c)": lambda: ours(True, [quarter]),
    }
    plain = lambda: F.scaled_dot_product_attention(q, k, v, scale=call.scale)  # noqa: E731
    times: dict[str, list[float]] = {name: [] for name in ["attention", *ways]}
    for _ in range(options.repeat + 1):  # the first round warms up
        times["attention"].append(seconds(plain))
        for name, way in ways.items():
            times[name].append(seconds(way))
    cost = {name: statistics.median(found[1:]) for name, found in times.items()}
    rows = torch.arange(0, image, max(1, image // 64), device=device)
    true = exact(call, spans, rows)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{options.heads} heads of {options.width}, {TEXT} + {image} tokens, {KEPT} kept, {dtype}, {where}\n")
    print("| | times the attention call | largest relative error |\n|---|---|---|")
    for name, way in ways.items():
        error = ((way()[:, rows].double() - true) / true).abs().max()
        print(f"| {name} | {cost[name] / cost['attention']:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
