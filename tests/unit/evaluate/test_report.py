"""Figures, tables and sheets of a log whose counts are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goca_core.evaluate import report
from goca_core.evaluate.datasets.base import ClassName, Dataset
from goca_core.evaluate.methods import Method, parse
from goca_core.evaluate.results_log import Expected, Record, ResultsLog, cells
from goca_core.evaluate.worker import Prediction


class Four(Dataset):
    """Two pixels high, two wide: enough to count by hand."""

    name, layout, default_split, reference_split = "four", "nothing", "all", "all"
    classes = (ClassName("background", ("background",)), ClassName("cat", ("cat",)), ClassName("dog", ("dog",)))
    scored = (0, 1, 2)
    items = ()

    def image(self, item: Any) -> Any:
        raise NotImplementedError

    label = image


METHOD = parse("goca").resolved("offset", "auto", 1, [0.0, 0.2])
TRUTH = np.array([[0, 0], [1, 1]])
EXPECTED = Expected(("first", "second", "third", "fourth"), {"goca": 2}, 3)


def log(folder: Path) -> ResultsLog:
    one = ResultsLog(folder / "log.jsonl", {"settings": {}}, EXPECTED)
    # At theta 0 one of two cat pixels is found, at 0.2 both; the second image is wrong throughout.
    found = np.array([[[0, 0], [1, 0]], [[0, 0], [1, 1]]])
    one.add(Record("first", {"goca": cells(found, TRUTH, 3, -1)}, on="cpu"))
    one.add(
        Record("second", {"goca": cells(np.zeros((2, 2, 2), np.int64), np.ones((2, 2), np.int64), 3, -1)}, on="cpu")
    )
    return one


def results(folder: Path) -> dict[str, Any]:
    return report.results([METHOD], Four(), log(folder))


def test_figures_by_hand(tmp_path: Path) -> None:
    found = results(tmp_path)["methods"]["goca"]
    # theta 0: background 2 of 7, cat 1 of 6; theta 0.2: background 2 of 6, cat 2 of 6; the dog never occurs and counts 0.
    plain, top = found["untuned"], found["best"]
    assert plain["theta"] == 0.0 and plain["miou"] == pytest.approx((2 / 7 + 1 / 6) / 3)
    assert plain["accuracy"] == pytest.approx(3 / 8)
    assert top["theta"] == 0.2 and top["miou"] == pytest.approx((2 / 6 + 2 / 6) / 3)
    assert top["miou_of_classes_that_occur"] == pytest.approx(1 / 3)
    assert top["iou"] == {"background": pytest.approx(1 / 3), "cat": pytest.approx(1 / 3), "dog": 0.0}
    assert [step["theta"] for step in found["sweep"]] == [0.0, 0.2]


def test_only_scored_classes_make_the_mean(tmp_path: Path) -> None:
    data = Four()
    data.scored = (1,)
    found = report.results([METHOD], data, log(tmp_path))
    assert found["methods"]["goca"]["best"]["miou"] == pytest.approx(1 / 3)
    assert "background (not in the mean)" in report.class_table(found)


def test_the_smallest_of_equal_thetas_is_best(tmp_path: Path) -> None:
    sweep = [report.Figures(theta, 0.5, 0.5, ()) for theta in (-0.1, 0.0, 0.1)]
    assert report.best(sweep).theta == -0.1
    assert report.untuned(METHOD, sweep) is sweep[1]
    assert report.untuned(METHOD, sweep[:1]) is None


def test_tables(tmp_path: Path) -> None:
    found = results(tmp_path)
    lines = report.table({**found, "run": "four all, present prompts, demo model"}).splitlines()
    assert lines[2] == "| four all, present prompts, demo model | goca | offset | 15.1 | 22.2 | 0.2 | 50.0 | 2 |"
    assert all(line.count("|") == 9 for line in lines)
    assert report.class_table(found).splitlines() == [
        "| class | goca |", "|---|---|", "| background | 33.3 |", "| cat | 33.3 |", "| dog | 0.0 |",
    ]  # fmt: skip


def test_images_left_out_are_counted_and_named(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(Record("third", error="third.png is missing", kind="missing"))
    one.add(Record("fourth", error="fourth.png is 2 x 3", kind="size"))
    found = report.results([METHOD], Four(), one)
    assert found["pictures"] == 2
    assert found["skipped_by_kind"] == {"missing": 1, "size": 1}
    assert found["skipped"][0] == {"key": "third", "kind": "missing", "error": "third.png is missing"}
    assert report.skipped(found) == "2 of 4 images were skipped (1 missing, 1 size)."
    assert report.skipped(results(tmp_path / "whole")) == ""


def test_classes_without_words_are_counted_and_named(tmp_path: Path) -> None:
    one = log(tmp_path)
    for key, classes in (("third", (1, 2)), ("fourth", (2,))):
        one.add(Record(key, {"goca": cells(np.zeros((2, 2, 2), np.int64), TRUTH, 3, -1)}, unnamed=classes))
    found = report.results([METHOD], Four(), ResultsLog(one.path, {"settings": {}}, EXPECTED))
    assert found["unnamed"] == {"dog": 2, "cat": 1}
    assert report.unnamed(found).endswith("such a class counts as not found: dog in 2, cat in 1.")
    assert report.unnamed(results(tmp_path / "whole")) == ""


def test_a_method_without_counts_scores_nothing(tmp_path: Path) -> None:
    other: Method = parse("vanilla").resolved("offset", "auto", 1)
    found = report.results([other], Four(), log(tmp_path))
    assert found["methods"]["vanilla"]["best"]["miou"] == 0.0


def test_ranking_and_picks(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(Record("third", error="gone", kind="missing"))
    ranked = report.ranking(one, METHOD, 0.2, 3)
    assert ranked == [(0.0, "second"), (pytest.approx(1.0), "first")]
    many = [(number / 10, f"p{number}") for number in range(10)]
    chosen = report.picked(many, 2)
    assert [[key for _, key in sheet] for sheet in chosen.values()] == [["p9", "p8"], ["p4", "p5"], ["p0", "p1"]]
    assert {len(sheet) for sheet in report.picked(ranked, 8).values()} == {2}


def test_sheets() -> None:
    rng = np.random.default_rng(0)
    prediction = np.zeros((40, 60), np.int64)
    prediction[5:20, 5:20] = 2
    nothing = np.zeros((400, 600), np.int64)
    small, large = (rng.integers(0, 255, (*size, 3), np.uint8) for size in ((40, 60), nothing.shape))
    shown = [
        (Prediction("first", small, np.full((40, 60), -1), prediction), 0.25),
        (Prediction("second", large, nothing, nothing), 1.0),
    ]
    sheet = report.sheet(shown, ["background", "cat", "dog"])
    assert sheet.mode == "RGB" and sheet.width > 3 * 256 and sheet.height > 2 * 200


def test_versions_are_known() -> None:
    assert report.pack_version() == "0.1.0" or report.pack_version()[0].isdigit()
    assert set(report.library_versions()) >= {"python", "torch", "numpy"}
