"""The command line: python -m goca_core.evaluate, from the pack's folder, with the Python that runs ComfyUI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..masks import BACKGROUND_RULES
from . import report, run
from .datasets.registry import DATASETS, DataError
from .executors import ExecutorError
from .methods import NAMED, PARTS, MethodError, parse
from .results_log import ResultsLogError
from .worker import PROMPTS, Job

_EPILOG = f"""
data sets, and what lies below --root:
{{layouts}}

methods: {", ".join(NAMED)}, or parts such as "head=average,layer=vanilla", or both: "goca,order=0,rule=max".
parts: {", ".join(PARTS)}; noise=auto+25% averages several noise levels.

Stopped or killed, the same command goes on where it was. Written into --out: log.jsonl (the counts of every
picture), results.json (all figures, settings and versions), results.md, and sheets of the best, median and worst pictures.
"""


def parser() -> argparse.ArgumentParser:
    layouts = "\n".join(f"  {name:<12} {kind.layout}" for name, kind in DATASETS.items())
    made = argparse.ArgumentParser(
        prog="python -m goca_core.evaluate",
        description="Segment the pictures of a data set by the paper's protocol and score the masks.",
        epilog=_EPILOG.format(layouts=layouts),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = made.add_argument_group("what is segmented")
    data.add_argument("--data", default="scenes", choices=list(DATASETS), help="default: scenes, drawn on the spot")
    data.add_argument("--root", help="folder that the data set was unpacked in")
    data.add_argument("--split", help="default: the official one")
    data.add_argument(
        "--reference-split", action="store_true", help="split, order and labels as in the reference implementation"
    )
    data.add_argument("--limit", type=int, help="only the first so many pictures")
    data.add_argument("--count", type=int, help="how many scenes (default 500)")
    data.add_argument(
        "--seed", type=int, default=20_000, help="of the noise, and number of the first scene (default 20000)"
    )
    data.add_argument(
        "--prompts",
        nargs="+",
        default=["auto"],
        metavar="KIND",
        help="present: the classes of the truth; all: every class; captions [FILE]: a JSON of captions, or the data set's "
        "own; auto (default): sentences for scenes, else present",
    )
    data.add_argument(
        "--reference-captions", action="store_true", help="read captions as the reference does, lost words and all"
    )
    how = made.add_argument_group("how")
    how.add_argument("--methods", nargs="+", default=["vanilla", "goca"], metavar="METHOD", help="see below")
    how.add_argument(
        "--rule", default="offset", choices=BACKGROUND_RULES, help="background rule, where a method has none"
    )
    how.add_argument(
        "--thetas", nargs="+", type=float, metavar="THETA", help="default: the reference's sweep for the rule"
    )
    how.add_argument("--noise-level", default="auto", help="auto (the paper's), a sigma, or a share of sampling: 75%%")
    how.add_argument("--draws", type=int, default=1, help="draws of the noise to average")
    how.add_argument(
        "--affinity",
        default="full",
        choices=("full", "lean"),
        help="grid of propagation: the paper's, or the nodes' default",
    )
    how.add_argument("--reference-channel0", action="store_true", help="reference affinity as in the released code")
    model = made.add_argument_group("with which model")
    model.add_argument("--checkpoint", help="any file with model, text encoder and VAE (default: the demo model)")
    model.add_argument(
        "--size", default="auto", help="side of the square that pictures are resized to (default: the model's)"
    )
    model.add_argument("--keep-aspect", action="store_true", help="keep proportions, at the area of that square")
    model.add_argument("--cpu", action="store_true", help="leave the graphics card alone")
    work = made.add_argument_group("work")
    work.add_argument("--out", required=True, type=Path, help="folder for the results; one run each")
    work.add_argument("--workers", type=int, default=1, help="processes (each holds the model)")
    work.add_argument("--ray", metavar="ADDRESS", help='workers on a Ray cluster; "auto": the one of this machine')
    work.add_argument("--threads", type=int, default=1, help="of the processor for each worker (default 1)")
    work.add_argument(
        "--skip-errors", action="store_true", help="leave out pictures with something wrong, and count them"
    )
    work.add_argument("--sheets", type=int, default=8, help="pictures on each sheet, 0 for no sheets (default 8)")
    return made


def read(arguments: Sequence[str] | None = None) -> tuple[Job, argparse.Namespace]:
    """The job that a command line describes. Exits with a usage message for one that is wrong."""
    made = parser()
    given = made.parse_args(arguments)
    kind, *files = given.prompts
    if kind not in PROMPTS or len(files) > (kind == "captions"):
        made.error(
            f"--prompts {' '.join(given.prompts)}: expected present, all, auto, or captions with at most one file"
        )
    if given.size != "auto" and not (given.size.isdecimal() and int(given.size) > 0):
        made.error(f"--size {given.size}: expected auto or a number of pixels")
    for name, least in (
        ("limit", 1),
        ("count", 1),
        ("workers", 1),
        ("threads", 1),
        ("draws", 1),
        ("seed", 0),
        ("sheets", 0),
    ):
        value = getattr(given, name)
        if value is not None and value < least:
            made.error(f"--{name} {value}: expected {least} or more")
    if given.count is not None and given.data != "scenes":
        made.error(f"--count is for drawn scenes; use --limit for {given.data}")
    options: dict[str, int] = {"seed": given.seed} if given.data == "scenes" else {}
    if given.count is not None:
        options["count"] = given.count
    try:
        methods = tuple(
            parse(text).settled(given.rule, given.noise_level, given.draws, given.thetas) for text in given.methods
        )
    except MethodError as error:
        made.error(str(error))
    if len({method.name for method in methods}) < len(methods):
        made.error("--methods: a method is given twice")
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
    """Run, and print the table. Returns the exit status."""
    job, given = read(arguments)
    from tqdm import tqdm  # every host has it; for the method alone it is not needed

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
        print("Stopped. What was counted is kept: the same command goes on from there.", file=sys.stderr)
        return 130
    print(report.table(found))
    for sentence in filter(None, (report.skipped(found), report.unnamed(found))):
        print(sentence, file=sys.stderr)
    print(f"Everything is in {given.out}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
