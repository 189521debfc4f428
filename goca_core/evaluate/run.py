"""A whole run: count what is left to count, then say what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import report
from .datasets.registry import Dataset
from .executors import Executor, executor
from .prompts.captions import load_captions
from .results_log import Record, ResultsLog
from .worker import Job, Prediction, Task

LEDGER, RESULTS, TABLE = "log.jsonl", "results.json", "results.md"
# The best pictures of this method are shown, if it is among those measured.
_SHOWN = "goca"


class EvaluationError(ValueError):
    """A run that cannot go on; one sentence that says why."""


def head(job: Job, keys: Iterable[str]) -> dict[str, Any]:
    """What the counts of a job depend on: its settings, the pictures, the weights, and the versions of everything."""
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
    """Measure all methods of a job, and write log, figures, table and sheets into the folder `out`.

    A run that was stopped goes on where it was. skip_errors: leave out pictures with something wrong, and count them.
    sheets: pictures on each sheet, 0 for none. progress: made like a tqdm bar, with `total`, `initial` and `desc`.
    Returns the content of results.json. Raises EvaluationError for a picture with something wrong, and DataError,
    ComfyUIError, ResultsLogError or ExecutorError for a run that cannot even begin.
    """
    dataset = job.open()
    if job.captions is not None:
        load_captions(job.captions)  # a file that cannot be read is no fault of a picture
    items = job.items(dataset)
    number = {item.key: index for index, item in enumerate(items)}
    about = head(job, number)
    log = ResultsLog(out / LEDGER, about)
    left = [Task(index) for key, index in number.items() if key not in log.done]
    with executor(job, workers, ray) as team:
        _count(team, left, log, len(items), skip_errors, progress)
        found = {"run": title(job, dataset), **about, "data": _data(job, dataset)}
        found |= report.results(job.methods, dataset, log)
        if not log.done:
            raise EvaluationError(f"No picture could be counted: {report.skipped(found)}")
        _write(out, found)
        if sheets:
            _draw(team, job, dataset, log, found, out, sheets, number)
    return found


def _count(
    team: Executor,
    left: list[Task],
    log: ResultsLog,
    total: int,
    skip_errors: bool,
    progress: Callable[..., Any] | None,
) -> None:
    bar = None if progress is None else progress(total=total, initial=total - len(left), desc="pictures")
    try:
        for record in team.map(left):
            assert isinstance(record, Record)
            if record.error and not skip_errors:
                raise EvaluationError(
                    f"{record.error} (Nothing counted so far is lost; --skip-errors leaves such pictures out.)"
                )
            log.add(record)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def _data(job: Job, dataset: Dataset) -> dict[str, Any]:
    return {"name": job.data, "split": dataset.split, "root": job.root, "captions": job.captions}


def title(job: Job, dataset: Dataset) -> str:
    """What a run is about, for the first column of its table."""
    model = "demo model" if job.checkpoint is None else Path(job.checkpoint).stem
    return f"{job.data} {dataset.split}, {job.mode(dataset)} prompts, {model}"


def _write(out: Path, found: dict[str, Any]) -> None:
    (out / RESULTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    parts = [report.table(found), report.class_table(found), report.skipped(found), report.unnamed(found)]
    (out / TABLE).write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _draw(
    team: Executor,
    job: Job,
    dataset: Dataset,
    log: ResultsLog,
    found: dict[str, Any],
    out: Path,
    count: int,
    number: dict[str, int],
) -> None:
    """The sheets: the same predictions made again, for these few pictures."""
    method = next((one for one in job.methods if one.name == _SHOWN), job.methods[-1])
    theta = found["methods"][method.name]["best"]["theta"]
    chosen = report.picked(report.ranking(log, method, theta, len(dataset.classes)), count)
    wanted = {key for ranked in chosen.values() for _, key in ranked}
    shown: dict[str, Prediction] = {}
    for one in team.map([Task(number[key], method.name, theta) for key in sorted(wanted)]):
        assert isinstance(one, Prediction)
        shown[one.key] = one
    names = [name.name for name in dataset.classes]
    for name, ranked in chosen.items():
        report.sheet([(shown[key], miou) for miou, key in ranked], names).save(out / f"{name}.png")
