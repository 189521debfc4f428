"""A complete evaluation: count the images that are not in the results log yet, then write the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import complete, why_not
from . import report
from .datasets.base import Dataset, Item
from .executors import Executor, make_executor
from .prompts.captions import load_captions
from .results_log import Expected, Record, ResultsLog
from .worker import Job, Prediction, Task

LOG, RESULTS, TABLE = "log.jsonl", "results.json", "results.md"
# The sheets show this method if it is evaluated, else the last one.
_SHEET_METHOD = "goca"


class EvaluationError(ValueError):
    """The evaluation cannot continue. The message is one sentence that says why."""


def head(job: Job, keys: Iterable[str]) -> dict[str, Any]:
    """What the counts of a job depend on: its settings, the images, the weights, and the versions of the software."""
    from ..capture.headless import digest, version, weights

    file = weights(None if job.checkpoint is None else Path(job.checkpoint))
    return {
        "settings": {
            **job.settings(),
            "weights": file.name,
            "weights_sha256": digest(file),
            "pictures_sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        },
        "versions": {"comfyui-goca": report.pack_version(), "comfyui": version(), **report.library_versions()},
    }


def expected(job: Job, dataset: Dataset, items: Iterable[Item]) -> Expected:
    """What the results log of a job may hold."""
    thetas = {method.name: len(method.thetas) for method in job.methods}
    return Expected(frozenset(item.key for item in items), thetas, len(dataset.classes))


def evaluate(
    job: Job,
    out: Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    skip_errors: bool = False,
    sheets: int = 8,
    progress: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Evaluate all methods of a job, and write the results log, figures, table and sheets into the folder `out`.

    An evaluation that was stopped continues where it was. workers, ray: see `executors.make_executor`. skip_errors: skip
    images whose data is bad, and report how many. sheets: images on each sheet, 0 for no sheets. progress: a factory of
    progress bars such as tqdm, called with `total`, `initial` and `desc`.
    Returns the content of results.json. Raises EvaluationError for an image whose data is bad and for a file that cannot be
    written, ResultsLogError if the log cannot, and DataError, ComfyUIError, ResultsLogError or ExecutorError if the
    evaluation cannot start.
    """
    dataset = job.open()
    if job.captions is not None:
        load_captions(job.captions)  # fail here, rather than in the record of the first image
    items = job.items(dataset)
    number = {item.key: index for index, item in enumerate(items)}
    about = head(job, number)
    log = ResultsLog(out / LOG, about, expected(job, dataset, items))
    pending = [Task(index) for key, index in number.items() if key not in log.done]
    with make_executor(job, workers, ray) as executor:
        _count(executor, pending, log, len(items), skip_errors, progress)
        data = {"name": job.data, "split": dataset.split, "root": job.root, "captions": job.captions}
        found = {"run": title(job, dataset), **about, "data": data}
        found |= report.results(job.methods, dataset, log)
        if not log.done:
            raise EvaluationError(f"No image could be counted: {report.skipped(found)}")
        _write(out, found)
        if sheets:
            _draw_sheets(executor, job, dataset, log, found, out, sheets, number)
    return found


def _count(
    executor: Executor,
    pending: list[Task],
    log: ResultsLog,
    total: int,
    skip_errors: bool,
    progress: Callable[..., Any] | None,
) -> None:
    bar = None if progress is None else progress(total=total, initial=total - len(pending), desc="images")
    try:
        for record in executor.map(pending):
            assert isinstance(record, Record)
            if record.error and not skip_errors:
                raise EvaluationError(
                    f"{record.error} (Everything counted so far is kept. Use --skip-errors to skip such images.)"
                )
            log.add(record)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def title(job: Job, dataset: Dataset) -> str:
    """A short name of the evaluation, for the first column of its table."""
    model = "demo model" if job.checkpoint is None else Path(job.checkpoint).stem
    return f"{job.data} {dataset.split}, {job.mode(dataset)} prompts, {model}"


def _write(out: Path, found: dict[str, Any]) -> None:
    parts = [report.table(found), report.class_table(found), report.skipped(found), report.unnamed(found)]
    with _written(out / RESULTS) as new:
        new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with _written(out / TABLE) as new:
        new.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Like `files.complete`, but raises EvaluationError when the file cannot be written."""
    try:
        with complete(path) as new:
            yield new
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be written: {why_not(error)}. (Everything counted so far is kept.)"
        ) from error


def _draw_sheets(
    executor: Executor,
    job: Job,
    dataset: Dataset,
    log: ResultsLog,
    found: dict[str, Any],
    out: Path,
    count: int,
    number: dict[str, int],
) -> None:
    """Save the sheets. The log keeps only counts, so the predictions of these few images are made again."""
    method = next((one for one in job.methods if one.name == _SHEET_METHOD), job.methods[-1])
    theta = found["methods"][method.name]["best"]["theta"]
    chosen = report.picked(report.ranking(log, method, theta, len(dataset.classes)), count)
    wanted = {key for ranked in chosen.values() for _, key in ranked}
    shown: dict[str, Prediction] = {}
    for one in executor.map([Task(number[key], method.name, theta) for key in sorted(wanted)]):
        assert isinstance(one, Prediction)
        shown[one.key] = one
    names = [name.name for name in dataset.classes]
    for name, ranked in chosen.items():
        drawn = report.sheet([(shown[key], miou) for miou, key in ranked], names)
        with _written(out / f"{name}.png") as new:
            drawn.save(new, format="PNG")
