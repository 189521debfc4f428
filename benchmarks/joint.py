"""What is the best way to get the text columns and the self-attention of a joint attention call? Compares all of them.

    python benchmarks/joint.py

Prints a Markdown table: the cost of each way as a multiple of the attention call itself, and its error relative to the
softmax in double precision. The text columns come from (a) a pass over blocks of query rows, (b) fused attention with
one-hot values, or (c) the text keys alone and the denominators that the kernel has shown. (a) and (c) are also measured with
self-attention, (a) on the image's own grid and both on a grid with a quarter of its tokens. The recorder's own code is in
``goca_core/capture/reduce/one_pass.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import device, medians
from goca_core.capture.families.base import JointSpans
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.fused import watch_totals
from goca_core.capture.reduce.one_pass import joint_pass
from goca_core.capture.reduce.self_maps import SelfMaps
from goca_core.capture.reduce.text_maps import TextMaps, token_columns
from goca_core.tensors import Grid
from scripts.boot import boot

TEXT, KEPT = 512, 20


class Kept:
    """Takes the self-attention on one grid and keeps it."""

    def __init__(self, target: Grid) -> None:
        self.target = target
        self.parts: list[Tensor] = []

    def take(self, frame: int | slice, rows: slice, part: Tensor) -> None:
        self.parts.append(part)

    def finish(self, whole: tuple[Tensor, Grid] | None) -> None:
        if whole is not None:
            self.parts.append(whole[0])


def exact(call: AttentionCall, spans: JointSpans, rows: Tensor) -> Tensor:
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
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if kind.type == "cuda" else torch.float32
    image, grid = options.side**2, (options.side, options.side)
    shape = (1, options.heads, TEXT + image, options.width)
    generator = torch.Generator(kind).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator, device=kind, dtype=dtype) for _ in range(3))
    call = AttentionCall(q, k, v, None, options.width**-0.5)
    spans = JointSpans(slice(TEXT), slice(TEXT, TEXT + image))
    columns = token_columns(TEXT, TEXT, tuple(range(KEPT)), False, kind)
    weights: dict[str, Tensor | None] = {"average": None}
    quarter = (options.side // 2, options.side // 2)

    with watch_totals() as seen:
        F.scaled_dot_product_attention(q, k, v, scale=call.scale)
    known = seen.complete(call)

    def ours(fused: bool, target: Grid | None = None) -> Tensor:
        maps = None if target is None else SelfMaps(grid, [Kept(target)])
        text = TextMaps(weights, columns)
        joint_pass((known if fused else call).queries(spans.image), spans, text, maps)
        if maps is not None:
            maps.finish()
        return text.result()["average"]

    def one_hot() -> Tensor:
        values = torch.zeros_like(v)
        values[:, :, range(KEPT), range(KEPT)] = 1
        return F.scaled_dot_product_attention(q[:, :, spans.image], k, values, scale=call.scale)[..., :KEPT].mean(1)

    ways: dict[str, Callable[[], Tensor]] = {
        "text: (a) pass": lambda: ours(False),
        "text: (b) one-hot values": one_hot,
        "text: (c) fused denominators": lambda: ours(True),
        "text and self-attention, own grid: (a)": lambda: ours(False, grid),
        "text and self-attention, quarter grid: (a)": lambda: ours(False, quarter),
        "text and self-attention, quarter grid: (c)": lambda: ours(True, quarter),
    }
    plain = {"attention": lambda: F.scaled_dot_product_attention(q, k, v, scale=call.scale)}
    cost = medians({**plain, **ways}, options.repeat)
    rows = torch.arange(0, image, max(1, image // 64), device=kind)
    true = exact(call, spans, rows)
    print(f"{options.heads} heads of {options.width}, {TEXT} + {image} tokens, {KEPT} kept, {dtype}, {device()}\n")
    print("| | times the attention call | largest relative error |\n|---|---|---|")
    for name, way in ways.items():
        error = ((way()[:, rows].double() - true) / true).abs().max()
        print(f"| {name} | {cost[name] / cost['attention']:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
