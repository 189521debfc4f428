"""How good are the masks? The ablation switches each part of the method on and off, on drawn scenes with known masks.

    python benchmarks/segmentation.py --scenes 500 --seeds 3 --workers 2

Each scene is encoded, noised to each level, and evaluated once per level (the paper's protocol). All methods use the same
recordings. Prints Markdown tables with the mean intersection over union of the background and six shapes in percent: the
mean over the seeds with a 95 % interval (Student's t), at the default threshold (untuned) and at the best one of the sweep. A
stopped run continues if it is started again with the same --out.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[1]))

from goca_core.evaluate.methods import Method
from goca_core.evaluate.run import evaluate
from goca_core.evaluate.worker import Job
from scripts.boot import boot

AVERAGE, VANILLA, RENORM = "average", "vanilla", "per-token renorm+"
HEADS, LAYERS, RESCALE = "dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+"
PARTS = {
    "vanilla": dict(head=AVERAGE, layer=VANILLA, rescale=RENORM),
    "heads": dict(head=HEADS, layer=VANILLA, rescale=RENORM),
    "layers": dict(head=AVERAGE, layer=LAYERS, rescale=RENORM),
    "rescaling": dict(head=AVERAGE, layer=VANILLA, rescale=RESCALE),
    "all (GoCA)": dict(head=HEADS, layer=LAYERS, rescale=RESCALE),
}
# Not in the paper, or not the paper's choice. All but the first two rows are "all" with one change.
EXTRAS = {
    "heads and rescaling": dict(PARTS["all (GoCA)"], layer=VANILLA),
    "layers, mass-preserving": dict(PARTS["layers"], layer="mass-preserving"),
    "mass-preserving layer scores": dict(layer="mass-preserving"),
    "hand-picked layers": dict(layer=VANILLA, layers="manual"),
    "propagation weighted by layer score": dict(affinity="by score"),
    "L2 head weights": dict(head="l2-norm"),
    "rescaling x raw": dict(rescale="sum-1 rescaling + per-token renorm+ x raw"),
    "rescaling x raw + renorm": dict(rescale="sum-1 rescaling + per-token renorm+ x raw + renorm"),
    "robust range": dict(range="robust"),
    "refined by PAMR": dict(refine="pamr"),
    "refined by the guided filter": dict(refine="guided filter"),
    "refined by proposal merge": dict(refine="proposal merge"),
    "flipped image averaged in": dict(flip="yes"),
    **{
        f"{title}, refined by {label}": dict(parts, refine=refine)
        for label, refine in (("PAMR", "pamr"), ("the guided filter", "guided filter"))
        for title, parts in {
            "mass-preserving": dict(layer="mass-preserving"),
            "heads and rescaling": dict(layer=VANILLA),
            "vanilla": PARTS["vanilla"],
            "vanilla with a plain threshold": dict(PARTS["vanilla"], rule="vanilla"),
        }.items()
    },
}
DRAWS = 3
# Row title -> its methods, one for each number of propagation steps.
Table = dict[str, list[Method]]


def rows(parts: dict[str, dict[str, Any]], orders: Sequence[int], rule: str, level: str) -> Table:
    """One method for each part and each number of propagation steps."""

    def method(title: str, part: dict[str, Any], order: int) -> Method:
        name = f"{title}, order {order}, {rule}, noise {level}"
        return Method(name, order=order, **{"noise": (level,), **part}).resolved(rule, level, 1)

    return {title: [method(title, part, order) for order in orders] for title, part in parts.items()}


def plan(options: argparse.Namespace) -> dict[str, Table]:
    """The tables by their titles."""
    tables = {
        f"Noise level {level}, background rule {rule}": rows(PARTS, options.orders, rule, level)
        for rule in options.rules
        for level in options.levels
    }
    if not options.no_extras:
        level, rule = options.levels[0], options.rules[0]
        goca = PARTS["all (GoCA)"]
        extras: dict[str, dict[str, Any]] = {title: dict(goca, **part) for title, part in EXTRAS.items()}
        for title, layer in (("all (GoCA)", LAYERS), ("mass-preserving", "mass-preserving")):
            base: dict[str, Any] = dict(goca, layer=layer)
            if len(options.levels) > 1:
                extras[f"{title}, {len(options.levels)} noise levels averaged"] = dict(
                    base, noise=tuple(options.levels)
                )
            extras[f"{title}, {DRAWS} draws averaged"] = dict(base, draws=DRAWS)
        tables[f"Beyond the paper: noise level {level}, background rule {rule}"] = rows(
            extras, options.orders, rule, level
        )
    return tables


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of its 95 % interval, in percent."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.1f} ± {half:.1f}"


def cell(runs: Sequence[dict[str, Any]], name: str) -> tuple[str, str]:
    """mIoU at the default theta, and at the theta that is best for the mean of all seeds."""
    found = [run["methods"][name] for run in runs]
    plain = [one["untuned"]["miou"] for one in found]
    sweeps = [[step["miou"] for step in one["sweep"]] for one in found]
    place = int(np.mean(sweeps, 0).argmax())
    theta = found[0]["sweep"][place]["theta"]
    return interval(plain), f"{interval([sweep[place] for sweep in sweeps])} ({theta:g})"


def steps(order: int) -> str:
    """A number of propagation steps, in words."""
    return f"{order} step{'' if order == 1 else 's'}"


def markdown(tables: dict[str, Table], runs: Sequence[dict[str, Any]], orders: Sequence[int]) -> Iterator[str]:
    for title, lines in tables.items():
        yield f"\n### {title}\n"
        heads = [f"{steps(order)}: {what}" for order in orders for what in ("untuned", "best (theta)")]
        yield f"| method | {' | '.join(heads)} |"
        yield "|---|" + "---|" * len(heads)
        for row, methods in lines.items():
            cells = [text for method in methods for text in cell(runs, method.name)]
            yield f"| {row} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500, help="scenes per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--first",
        type=int,
        default=20_000,
        help="number of the first scene; seeds share no scenes, and training uses others",
    )
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2], help="propagation steps")
    parser.add_argument(
        "--levels", nargs="+", default=["auto", "95%", "75%", "60%"], help="noise levels, the paper's first"
    )
    parser.add_argument("--rules", nargs="+", default=["offset", "max", "avg", "vanilla"], help="background rules")
    parser.add_argument("--no-extras", action="store_true", help="skip the table of what is not in the paper")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="other weights of the demo model, or any checkpoint (default: the bundled weights)",
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the counts, so that a stopped run can continue")
    options = parser.parse_args()
    boot()
    from tqdm import tqdm

    tables = plan(options)
    methods = {method.name: method for lines in tables.values() for found in lines.values() for method in found}
    job = Job(
        data="scenes",
        methods=tuple(methods.values()),
        checkpoint=None if options.checkpoint is None else str(options.checkpoint),
    )
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.seeds):
            seed = options.first + number * options.scenes
            one = replace(job, seed=seed, options=(("count", options.scenes), ("seed", seed)))
            out = (options.out or Path(scratch)) / f"seed-{seed}"
            runs.append(evaluate(one, out, workers=options.workers, sheets=0, progress=tqdm))
    print(f"{options.scenes} scenes x {options.seeds} seeds, {runs[0]['settings']['weights']}, mIoU in percent")
    print("\n".join(markdown(tables, runs, options.orders)))


if __name__ == "__main__":
    main()
