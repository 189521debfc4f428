"""The log: whole images, once each, whatever happens to the process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goca_core.evaluate.results_log import Expected, Record, ResultsLog, ResultsLogError, add_cells, cells
from goca_core.metrics import Confusion

HEAD = {"settings": {"data": "scenes", "methods": [{"name": "goca"}]}, "versions": {"torch": "2"}}
CLASSES, THETAS = 4, 3
EXPECTED = Expected([f"image-{seed}" for seed in range(10)], {"goca": THETAS, "vanilla": THETAS}, CLASSES)


def counted(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, ...], ...]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (THETAS, 5, 7))
    truth = rng.integers(-1, CLASSES, (5, 7))
    return labels, truth, cells(labels, truth, CLASSES, -1)


def record(seed: int) -> Record:
    _, truth, rows = counted(seed)
    others = cells(counted(seed + 1000)[0], truth, CLASSES, -1)
    return Record(f"image-{seed}", {"goca": rows, "vanilla": others}, on="cpu")


def log(folder: Path, head: dict[str, Any] = HEAD) -> ResultsLog:
    return ResultsLog(folder / "log.jsonl", head, EXPECTED)


def matrices(one: ResultsLog) -> dict[str, list[list[list[int]]]]:
    return {name: [m.matrix.tolist() for m in sums] for name, sums in one.totals(CLASSES).items()}


# -- counting ----------------------------------------------------------------------------------------------------------


def test_cells_are_the_confusion_matrix() -> None:
    labels, truth, rows = counted(1)
    assert (truth == -1).any()
    for theta in range(THETAS):
        expected = Confusion(CLASSES).update(labels[theta], truth, ignore=-1)
        assert np.array_equal(add_cells(Confusion(CLASSES), rows[theta]).matrix, expected.matrix)


def test_cells_without_a_pixel_that_counts() -> None:
    assert cells(np.zeros((2, 3, 3), np.int64), np.full((3, 3), -1), CLASSES, -1) == ((), ())


def test_cells_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same size"):
        cells(np.zeros((1, 3, 4), np.int64), np.zeros((4, 3), np.int64), CLASSES, -1)
    with pytest.raises(ValueError, match="label holds classes"):
        cells(np.zeros((1, 2, 2), np.int64), np.full((2, 2), 4), CLASSES, -1)
    with pytest.raises(ValueError, match="prediction holds classes"):
        cells(np.full((1, 2, 2), 4), np.zeros((2, 2), np.int64), CLASSES, -1)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_sums_do_not_depend_on_order_or_interruption(tmp_path: Path) -> None:
    straight = log(tmp_path / "a")
    for seed in range(8):
        assert straight.add(record(seed))
    seeds = list(range(8))
    random.Random(3).shuffle(seeds)
    for seed in seeds[:5]:
        log(tmp_path / "b").add(record(seed))  # opened anew each time
    resumed = log(tmp_path / "b")
    assert resumed.done == {f"image-{seed}" for seed in seeds[:5]}
    for seed in seeds:
        resumed.add(record(seed))
    assert matrices(straight) == matrices(resumed)
    expected = sum(int((counted(seed)[1] != -1).sum()) for seed in range(8))
    assert sum(map(sum, matrices(straight)["goca"][0])) == expected


def test_an_image_counts_once(tmp_path: Path) -> None:
    one = log(tmp_path)
    assert one.add(record(1)) and not one.add(record(1))
    once = matrices(one)
    # Two processes on one folder may both have done it.
    lines = one.path.read_bytes().splitlines(keepends=True)
    one.path.write_bytes(b"".join([*lines, lines[-1]]))
    assert matrices(log(tmp_path)) == once


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_dropped(tmp_path: Path, left: int) -> None:
    one = log(tmp_path)
    one.add(record(1))
    expected = matrices(one)
    whole = one.path.stat().st_size
    one.add(record(2))
    data = one.path.read_bytes()
    one.path.write_bytes(data[: whole + left] if left > 0 else data[:left])
    again = log(tmp_path)
    assert again.done == {"image-1"} and matrices(again) == expected
    again.add(record(2))
    assert one.path.read_bytes() == data


def test_a_torn_head_begins_anew(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.path.write_bytes(one.path.read_bytes()[:20])
    again = log(tmp_path)
    assert not again.done and json.loads(again.path.read_text("utf-8"))["settings"] == HEAD["settings"]


def test_long_torn_lines(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(record(1))
    size = one.path.stat().st_size
    with one.path.open("ab") as file:
        file.write(b'{"key":"' + b"x" * 200_000)
    assert log(tmp_path).done == {"image-1"} and one.path.stat().st_size == size


def test_a_broken_line_within_is_an_error(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(record(1))
    one.add(record(2))
    lines = one.path.read_bytes().splitlines(keepends=True)
    one.path.write_bytes(b"".join([lines[0], lines[1][:-20] + b"\n", lines[2]]))
    with pytest.raises(ResultsLogError, match=r"Line 2 of log\.jsonl cannot be read"):
        log(tmp_path)


def cells_of(row: Any) -> Callable[[dict[str, Any]], None]:
    """Other cells at one theta, where MANY stands for the number of pixels that count, so that the sum gives nothing away."""

    def change(line: dict[str, Any]) -> None:
        rows = line["counts"]["goca"]
        many = sum(rows[1][1::2])
        rows[1] = (
            row if not isinstance(row, list) else [many + value[1] if type(value) is tuple else value for value in row]
        )

    return change


MANY, MORE, LESS = (0, 0), (0, 5), (0, -5)


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda line: line.update(values)


# What an editor may leave: of other types, other images, methods, thetas or classes, or cells that count wrongly.
EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a number as key": put(key=5), "a list as key": put(key=[]), "another image": put(key="image-99"),
    "text for counts": put(counts="abc"), "a list for counts": put(counts=[]), "no methods": put(counts={}),
    "no counts": lambda line: line.pop("counts"), "a method less": lambda line: line["counts"].pop("goca"),
    "a method more": lambda line: line["counts"].update(daam=line["counts"]["goca"]),
    "a theta less": lambda line: line["counts"]["goca"].pop(), "a method of text": lambda line: line["counts"].update(goca="abc"),
    "half a cell": cells_of([0]), "fewer than no pixels": cells_of([0, -5, 1, MORE]), "no pixels": cells_of([0, 0, 1, MANY]),
    "the last class by a trick": cells_of([-1, MANY]), "a class too many": cells_of([CLASSES**2, MANY]),
    "a cell twice": cells_of([0, 5, 0, LESS]), "cells in no order": cells_of([1, 5, 0, LESS]), "text as cells": cells_of(["a", "b"]),
    "a part of a pixel": cells_of([0, 1.5]), "pairs": cells_of([[0, 1]]), "nothing": cells_of(None), "no pixel": cells_of([]),
    "true as a number": cells_of([0, True]), "more than any image": cells_of([0, 2**70]), "other pixels": cells_of([0, 1000]),
    "an error with counts": put(error="gone"), "a number as error": put(error=5), "a list as kind": put(kind=[]),
    "a list as device": put(on=[1]), "text as classes": put(unnamed="ab"), "a class that is none": put(unnamed=[CLASSES]),
    "a class from the end": put(unnamed=[-1]), "the background": put(unnamed=[0]), "a class twice": put(unnamed=[1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_line_is_refused(tmp_path: Path, name: str) -> None:
    """It would end in an error later, or count wrongly; without it, its image is counted again."""
    one = log(tmp_path)
    for seed in (1, 2, 3):
        one.add(record(seed))
    expected, whole = matrices(one), one.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    line = json.loads(lines[2])
    EDITS[name](line)
    one.path.write_bytes(b"".join([*lines[:2], json.dumps(line).encode() + b"\n", *lines[3:]]))
    with pytest.raises(ResultsLogError, match=r"Line 3 of log\.jsonl does not hold the counts of an image") as refused:
        log(tmp_path)
    assert "delete that line" in str(refused.value) and "\n" not in str(refused.value)
    one.path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    again = log(tmp_path)
    assert again.done == {"image-1", "image-3"}
    again.add(record(2))
    assert matrices(again) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"NaN", b"[]", b'"key"', b"[" * 100_000, b"\xff\xfe", b'{"counts":{}}',
        b'{"key":"image-2","key":"image-3","error":"gone"}', b'{"key":"image-2","error":"gone","error":""}',
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    one = log(tmp_path)
    one.add(record(1))
    with one.path.open("ab") as file:
        file.write(text + b"\n")
    with pytest.raises(ResultsLogError, match=r"Line 3 of log\.jsonl cannot be read: delete that line"):
        log(tmp_path)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({**HEAD, "settings": {"data": "voc", "methods": [{"name": "goca"}]}}, 'data was "scenes" and is now "voc"'),
        ({**HEAD, "settings": {"data": "scenes", "methods": [{"name": "daam"}]}}, "methods was"),
        ({**HEAD, "versions": {"torch": "3"}}, 'torch was "2" and is now "3"'),
        ({**HEAD, "settings": {**HEAD["settings"], "limit": 5}}, "limit was null and is now 5"),  # type: ignore[dict-item]
    ],
)
def test_other_settings_are_refused(tmp_path: Path, head: dict[str, Any], said: str) -> None:
    one = log(tmp_path)
    one.add(record(1))
    before = one.path.read_bytes()
    with pytest.raises(ResultsLogError, match="other settings") as refused:
        log(tmp_path, head)
    assert said in str(refused.value)
    assert one.path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"key": "x"}\n', "nothing of ours\n", "[]\n", '{"goca_evaluation": 0}\n', "[" * 100_000 + "\n"]
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ResultsLogError, match="not a results log"):
        log(tmp_path)


def test_errors_are_kept_and_tried_again(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(record(1))
    one.add(Record("image-2", error="no such file", kind="missing"))
    again = log(tmp_path)
    assert again.done == {"image-1"} and again.failed["image-2"].kind == "missing"
    assert [found.key for found in again.records()] == ["image-1", "image-2"]
    again.add(record(2))
    last = log(tmp_path)
    assert last.done == {"image-1", "image-2"} and not last.failed
    assert [found.error for found in last.records()] == ["", ""]
