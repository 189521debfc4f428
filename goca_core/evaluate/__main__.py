"""The command line: run `python -m goca_core.evaluate` in the pack's folder, with the Python that runs ComfyUI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..masks import BACKGROUND_RULES
from . import report, run
from .datasets.base import DataError
from .datasets.registry import DATASETS
from .executors import ExecutorError
from .methods import NAMED, PARTS, MethodError, parse
from .results_log import ResultsLogError
from .worker import PROMPTS, Job

_EPILOG = f"""
data sets, and the files that they need below --root:
{{layouts}}

methods: {", ".join(NAMED)}, or parts such as "head=average,layer=vanilla", or both: "goca,order=0,rule=max".
parts: {", ".join(PARTS)}. noise=auto+25% averages several noise levels.

If an evaluation was stopped or killed, run the same command again to continue it. Files written into --out:
log.jsonl (the counts of every image), results.json (all figures, settings and versions), results.md (the tables), and
best.png, median.png and worst.png (sheets of images with their predictions).
"""


def parser() -> argparse.ArgumentParser:
    layouts = "\n".join(f"  {name:<12} {kind.layout}" for name, kind in DATASETS.items())
    made = argparse.ArgumentParser(
        prog="python -m goca_core.evaluate",
        description="Segment the images of a data set by the paper's protocol and score the masks.",
        epilog=_EPILOG.format(layouts=layouts),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = made.add_argument_group("data")
    data.add_argument(
        "--data",
        default="scenes",
        choices=list(DATASETS),
        help="default: scenes, which are generated and need no download",
    )
    data.add_argument("--root", help="folder with the unpacked data set")
    data.add_argument("--split", help="default: the official split")
    data.add_argument(
        "--reference-split", action="store_true", help="use split, order and labels of the reference implementation"
    )
    data.add_argument("--limit", type=int, help="evaluate only the first LIMIT images")
    data.add_argument("--count", type=int, help="number of scenes (default 500)")
    data.add_argument(
        "--seed", type=int, default=20_000, help="seed of the noise, and number of the first scene (default 20000)"
    )
    data.add_argument(
        "--prompts",
        nargs="+",
        default=["auto"],
        metavar="KIND",
        help="present: name the classes of the label; all: name every class; captions [FILE]: captions from a JSON file, or "
        "those of the data set; auto (default): captions for scenes, else present",
    )
    data.add_argument(
        "--reference-captions",
        action="store_true",
        help="read captions as the reference implementation does, including the words it loses",
    )
    how = made.add_argument_group("methods")
    how.add_argument("--methods", nargs="+", default=["vanilla", "goca"], metavar="METHOD", help="see below")
    how.add_argument(
        "--rule", default="offset", choices=BACKGROUND_RULES, help="background rule of methods that name none"
    )
    how.add_argument(
        "--thetas",
        nargs="+",
        type=float,
        metavar="THETA",
        help="thresholds (default: the reference's sweep for the rule)",
    )
    how.add_argument(
        "--noise-level", default="auto", help="auto (the paper's), a sigma, or a percentage of sampling, such as 75%%"
    )
    how.add_argument("--draws", type=int, default=1, help="draws of the noise to average (default 1)")
    how.add_argument(
        "--affinity",
        default="full",
        choices=("full", "lean"),
        help="grid of propagation: full (default) is the paper's, lean is the nodes' default",
    )
    how.add_argument(
        "--reference-channel0", action="store_true", help="use the reference affinity of the released code"
    )
    model = made.add_argument_group("model")
    model.add_argument("--checkpoint", help="a checkpoint with model, text encoder and VAE (default: the demo model)")
    model.add_argument(
        "--size", default="auto", help="side of the square that images are resized to (default: the model's)"
    )
    model.add_argument(
        "--keep-aspect", action="store_true", help="keep the proportions of images, at the area of that square"
    )
    model.add_argument("--cpu", action="store_true", help="do not use the GPU")
    work = made.add_argument_group("execution")
    work.add_argument(
        "--out", required=True, type=Path, help="folder for the results; use a new one for each evaluation"
    )
    work.add_argument("--workers", type=int, default=1, help="number of processes; each loads the model (default 1)")
    work.add_argument(
        "--ray", metavar="ADDRESS", help='run the workers on a Ray cluster; "auto": the one of this machine'
    )
    work.add_argument("--threads", type=int, default=1, help="CPU threads per worker (default 1)")
    work.add_argument("--skip-errors", action="store_true", help="skip images whose data is bad, and report how many")
    work.add_argument("--sheets", type=int, default=8, help="images on each sheet, 0 for no sheets (default 8)")
    return made


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[Job, argparse.Namespace]:
    """Turn the command line into a job. Exits with a usage message if it is wrong."""
    made = parser()
    given = made.parse_args(arguments)
    kind, *files = given.prompts
    if kind not in PROMPTS or len(files) > (kind == "captions"):
        made.error(
            f"--prompts {' '.join(given.prompts)}: expected present, all, auto, or captions with at most one file"
        )
    if given.size != "auto" and not (given.size.isdecimal() and int(given.size) > 0):
        made.error(f"--size {given.size}: expected auto or a number of pixels")
    smallest = {"limit": 1, "count": 1, "workers": 1, "threads": 1, "draws": 1, "seed": 0, "sheets": 0}
    for name, least in smallest.items():
        value = getattr(given, name)
        if value is not None and value < least:
            made.error(f"--{name} {value}: expected {least} or more")
    if given.count is not None and given.data != "scenes":
        made.error(f"--count is only for scenes; use --limit for {given.data}")
    options: dict[str, int] = {"seed": given.seed} if given.data == "scenes" else {}
    if given.count is not None:
        options["count"] = given.count
    try:
        methods = tuple(
            parse(text).resolved(given.rule, given.noise_level, given.draws, given.thetas) for text in given.methods
        )
    except MethodError as error:
        made.error(str(error))
    if len({method.name for method in methods}) < len(methods):
        made.error("--methods: a method is given twice; list each method once")
    job = Job(
        data=given.data,
        methods=methods,
        root=given.root,
        split=given.split,
        reference=given.reference_split,
        options=tuple(sorted(options.items())),
        limit=given.limit,
        prompts=kind,
        captions=files[0] if files else None,
        reference_captions=given.reference_captions,
        checkpoint=given.checkpoint,
        seed=given.seed,
        side=None if given.size == "auto" else int(given.size),
        keep_aspect=given.keep_aspect,
        lean=given.affinity == "lean",
        channel0=given.reference_channel0,
        cpu=given.cpu,
        threads=given.threads,
    )
    return job, given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the evaluation and print its table. Returns the exit status."""
    job, given = parse_arguments(arguments)
    from tqdm import tqdm  # ComfyUI requires it; the method alone does not need it

    from ..capture.headless import ComfyUIError

    try:
        found = run.evaluate(
            job,
            given.out,
            workers=given.workers,
            ray=given.ray,
            skip_errors=given.skip_errors,
            sheets=given.sheets,
            progress=tqdm,
        )
    except (DataError, ComfyUIError, ResultsLogError, ExecutorError, run.EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Everything counted so far is kept; run the same command again to continue.", file=sys.stderr)
        return 130
    print(report.table(found))
    for sentence in filter(None, (report.skipped(found), report.unnamed(found))):
        print(sentence, file=sys.stderr)
    print(f"Results are in {given.out}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
