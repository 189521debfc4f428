"""Whole runs without ComfyUI: images that show nothing of any class need no model, and what is wrong is found before it."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from goca_core.evaluate import run
from goca_core.evaluate.__main__ import main, parse_arguments
from goca_core.evaluate.datasets import registry as data_module
from goca_core.evaluate.datasets.base import ClassName, DataError, Dataset, Item
from goca_core.evaluate.executors import ExecutorError, make_executor
from goca_core.evaluate.methods import parse
from goca_core.evaluate.results_log import ResultsLogError
from goca_core.evaluate.worker import Job, Task, Worker, noise_seed

from ..full_disk import no_file_larger_than


class Empty(Dataset):
    """Six images of nothing; `broken` of them have something wrong."""

    name, layout, default_split, reference_split = "empty", "nothing", "all", "all"
    classes = (ClassName("background", ("background",)), ClassName("cat", ("cat",)))
    scored = (0, 1)
    broken: dict[str, DataError] = {}  # noqa: RUF012

    def __init__(self, root: Any = None, split: str | None = None, *, reference: bool = False, count: int = 6) -> None:
        super().__init__(split, reference=reference)
        self.items = tuple(Item(f"p{number}", None, None) for number in range(count))

    def image(self, item: Item) -> Any:
        return np.full((4, 5, 3), 200, np.uint8)

    def label(self, item: Item) -> Any:
        if item.key in self.broken:
            raise self.broken[item.key]
        return np.zeros((4, 5), np.int64)


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data_module.DATASETS, "empty", Empty)  # type: ignore[index]
    monkeypatch.setattr(
        run, "head", lambda job, keys: {"settings": {**job.settings(), "keys": list(keys)}, "versions": {}}
    )


METHODS = tuple(parse(name).resolved("offset", "auto", 1) for name in ("vanilla", "goca"))


def job(**changes: Any) -> Job:
    return Job(**{"data": "empty", "methods": METHODS, **changes})


def test_a_whole_run(tmp_path: Path) -> None:
    found = run.evaluate(job(), tmp_path, sheets=2)
    assert found["pictures"] == 6
    goca = found["methods"]["goca"]["best"]
    assert goca["iou"] == {"background": pytest.approx(1.0), "cat": 0.0} and goca["accuracy"] == 1.0
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == json.loads(json.dumps(found))
    assert "| goca | offset |" in (tmp_path / "results.md").read_text("utf-8")
    assert {path.name for path in tmp_path.glob("*.png")} == {"best.png", "median.png", "worst.png"}


def test_a_second_run_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.evaluate(job(), tmp_path, sheets=0)
    monkeypatch.setattr(Worker, "count", lambda *_: pytest.fail("counted again"))
    assert run.evaluate(job(), tmp_path, sheets=0) == first


def test_something_wrong_is_fatal_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "p1": DataError("The image p1.jpg is missing.", "missing"),
        "p3": DataError("p3 is 4 x 5 and its label 4 x 4.", "size"),
    }
    monkeypatch.setattr(Empty, "broken", wrong)
    with pytest.raises(run.EvaluationError, match=r"The image p1\.jpg is missing\..*--skip-errors"):
        run.evaluate(job(), tmp_path, sheets=0)
    found = run.evaluate(job(), tmp_path, skip_errors=True, sheets=0)
    assert found["pictures"] == 4 and found["skipped_by_kind"] == {"missing": 1, "size": 1}
    assert {one["key"] for one in found["skipped"]} == {"p1", "p3"}
    # Mended, they are counted at last.
    monkeypatch.setattr(Empty, "broken", {})
    assert run.evaluate(job(), tmp_path, sheets=0)["pictures"] == 6


def test_nothing_counted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Empty, "broken", {f"p{n}": DataError("no label", "missing") for n in range(6)})
    with pytest.raises(run.EvaluationError, match=r"No image could be counted: 6 of 6"):
        run.evaluate(job(), tmp_path, skip_errors=True)


def test_an_empty_data_set_is_an_error(tmp_path: Path) -> None:
    for wrong in (job(options=(("count", 0),)), job(limit=0)):
        with pytest.raises(DataError) as refused:
            run.evaluate(wrong, tmp_path)
        assert refused.value.kind == "empty"


def test_a_limit(tmp_path: Path) -> None:
    assert run.evaluate(job(limit=2), tmp_path, sheets=0)["pictures"] == 2
    with pytest.raises(ResultsLogError, match="limit was 2 and is now 3"):
        run.evaluate(job(limit=3), tmp_path, sheets=0)


def test_captions_that_cannot_be_read_are_no_fault_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run.evaluate(job(prompts="captions", captions=str(tmp_path / "gone.json")), tmp_path, skip_errors=True)


def test_an_image_without_a_caption_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text('{"p0": "a cat, grass", "other": "a dog"}')
    captions = job(prompts="captions", captions=str(tmp_path / "captions.json"))
    worker = Worker(captions)
    found = worker.do(Task(1))
    assert found.kind == "caption" and "p1" in found.error  # type: ignore[union-attr]
    assert not worker.do(Task(0)).error  # type: ignore[union-attr]


def test_an_empty_caption_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text('{"p0": "  ", "p1": "grass"}')
    worker = Worker(job(prompts="captions", captions=str(tmp_path / "captions.json")))
    found = worker.do(Task(0))
    assert found.kind == "caption" and "p0 is empty" in found.error  # type: ignore[union-attr]
    assert not worker.do(Task(1)).error  # type: ignore[union-attr]


def test_a_class_without_words_in_the_prompt_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image shows a cat, of which no caption speaks; it counts as not found, and that is said."""
    monkeypatch.setattr(Empty, "label", lambda *_: np.ones((4, 5), np.int64))
    (tmp_path / "captions.json").write_text(json.dumps({f"p{number}": "grass" for number in range(6)}))
    captions = ["--prompts", "captions", str(tmp_path / "captions.json"), "--sheets", "0"]
    out = ["--data", "empty", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*out, *captions, "--methods", "goca"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert found["unnamed"] == {"cat": 6} and found["methods"]["goca"]["best"]["miou"] == 0.0
    said = "Some prompts do not name every class of their image; such a class counts as not found: cat in 6."
    assert said in capsys.readouterr().err and said in (tmp_path / "out" / "results.md").read_text("utf-8")


# -- watching and stopping ---------------------------------------------------------------------------------------------


def test_a_bar_shows_how_far_it_is(tmp_path: Path) -> None:
    def bar(**about: Any) -> Any:
        return tqdm(file=shown, mininterval=0, **about)

    shown = io.StringIO()
    run.evaluate(job(), tmp_path, sheets=0, progress=bar)
    assert "images:   0%" in shown.getvalue() and "6/6" in shown.getvalue()
    # What was counted before is done from the beginning.
    (tmp_path / "again").mkdir()
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "again" / "log.jsonl").write_bytes(b"".join(lines[:4]))
    shown = io.StringIO()
    run.evaluate(job(), tmp_path / "again", sheets=0, progress=bar)
    assert "3/6" in shown.getvalue() and "0/6" not in shown.getvalue() and "6/6" in shown.getvalue()


def test_an_interrupt_keeps_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl+C in the third image; the same command then counts what is left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    count, seen = Worker.count, []

    def interrupted(self: Worker, index: int) -> Any:
        seen.append(index)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return count(self, index)

    command = ["--data", "empty", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--sheets", "0"]
    monkeypatch.setattr(Worker, "count", interrupted)
    try:
        assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert "run the same command again to continue" in said and "Traceback" not in said
    assert main(command) == 0
    assert seen == [0, 1, 2, 2, 3, 4, 5]
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["pictures"] == 6


# -- files that cannot be written --------------------------------------------------------------------------------------


def refused(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of a run that ends with an error."""
    command = ["--data", "empty", "--root", str(out.parent), "--out", str(out), "--sheets", "2"]
    capsys.readouterr()
    assert main(command) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return said


@pytest.mark.parametrize("name", ["file", "file/deeper", "x" * 300])
def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "file").write_text("kept")
    said = refused(tmp_path / name, capsys)
    assert ("the name is too long" if name[0] == "x" else "a file or folder of that name is in the way") in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path, *_args: Any, **_more: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write anywhere
    assert "writing is not permitted there" in refused(tmp_path / "out", capsys)


@pytest.mark.parametrize("name", ["log.jsonl", "results.json", "results.md", "best.png"])
def test_a_folder_in_the_way_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    assert f"{name} cannot be" in (said := refused(out, capsys)) and "is in the way" in said
    assert not list(out.glob(".*"))
    (out / name).rmdir()
    command = ["--data", "empty", "--root", str(tmp_path), "--out", str(out), "--sheets", "2"]
    assert main(command) == 0 and json.loads((out / "results.json").read_text("utf-8"))["pictures"] == 6


@pytest.mark.parametrize("room", [0, 1000, 2500, 4500])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int) -> None:
    """A real write that fails halfway: in the head, in the log, or in the report. The same command then goes on."""
    out = tmp_path / "out"
    with no_file_larger_than(room):
        said = refused(out, capsys)
    assert "cannot be written: the disk is full" in said
    log = (out / "log.jsonl").read_bytes()
    assert not log or log.endswith(b"\n")
    for line in log.splitlines():
        json.loads(line)
    for path in out.glob("results.json"):
        json.loads(path.read_text("utf-8"))
    assert not list(out.glob(".*"))
    command = ["--data", "empty", "--root", str(tmp_path), "--out", str(out), "--sheets", "2"]
    assert main(command) == 0
    assert (out / "log.jsonl").read_bytes().startswith(log)
    assert json.loads((out / "results.json").read_text("utf-8"))["pictures"] == 6


def test_noise_is_of_the_image() -> None:
    seeds = {noise_seed(seed, key, draw) for seed in (1, 2) for key in ("a", "b") for draw in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(1, "a", 0) == noise_seed(1, "a", 0)


def test_no_workers() -> None:
    with pytest.raises(ExecutorError, match="1 or more"), make_executor(job(), 0):
        pass


# -- the command line --------------------------------------------------------------------------------------------------


def test_a_command_line_is_a_job() -> None:
    text = (
        "--data scenes --count 7 --seed 3 --methods goca head=average --thetas -0.1 0.1 --rule max --noise-level 75% "
        "--draws 2 --size 96 --keep-aspect --prompts present --affinity lean --out x --checkpoint y.safetensors"
    )
    made, given = parse_arguments(text.split())
    assert made.options == (("count", 7), ("seed", 3)) and made.seed == 3
    assert [method.name for method in made.methods] == ["goca", "head=average"]
    assert {method.thetas for method in made.methods} == {(-0.1, 0.1)}
    assert {(method.rule, method.noise, method.draws) for method in made.methods} == {("max", ("75%",), 2)}
    assert (made.side, made.keep_aspect, made.lean, made.prompts) == (96, True, True, "present")
    assert made.checkpoint == "y.safetensors" and given.out == Path("x")
    assert parse_arguments(["--out", "x", "--prompts", "captions", "c.json"])[0].captions == "c.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--out x --prompts some", "expected present, all, auto"),
        ("--out x --prompts present file", "expected present, all, auto"),
        ("--out x --size big", "expected auto or a number"),
        ("--out x --count 0", "--count 0: expected 1 or more"),
        ("--out x --workers 0", "--workers 0"),
        ("--out x --sheets -1", "--sheets -1: expected 0 or more"),
        ("--out x --data empty --count 5", "use --limit for empty"),
        ("--out x --methods best", 'no method "best"'),
        ("--out x --methods goca goca", "given twice"),
        ("--out x --noise-level loud", "not a noise level"),
        ("--data scenes", "--out"),
    ],
)
def test_a_wrong_command_line_says_so(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_arguments(text.split())
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_help_lists_the_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in (*data_module.DATASETS, "goca", "daam", "rescale"))


def test_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--data", "empty", "--split", "all", "--root", str(tmp_path), "--out", str(tmp_path), "--sheets", "0"])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("| run | method |") and "Traceback" not in captured.err
    assert main(["--data", "empty", "--out", str(tmp_path), "--limit", "1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
