"""The benchmark over families of models, on two scenes of the bundled demo model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import families
from benchmarks.minis.drawing import caption, plan_scene
from benchmarks.minis.text import Stream
from goca_core.demo.scenes import KINDS

FEW = ("auto", "plain averaging, threshold at one half")


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    given = ["families.py", "demo", "--scenes", "2", "--out", str(out), "--settings", *FEW]
    monkeypatch.setattr(sys, "argv", [*given, *more])
    families.main()


def test_the_demo_model_is_measured_once(
    host: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path)
    first, lines = capsys.readouterr().out, families.read(tmp_path / "demo.jsonl")
    assert len(lines) == 2 * len(families.KINDS)
    full = np.array([line[FEW[1]]["counts"] for line in lines if line["kind"] == "full"])
    assert full.sum((1, 2)).tolist() == [64 * 64] * 2
    mean, low, high = families.interval(full)
    assert np.nanmean(families.ious(full.sum(0))) == pytest.approx(mean)
    assert 80 < mean < 100 and low <= mean <= high
    assert all((line[FEW[0]]["absent"] is not None) == (line["kind"] == "absent") for line in lines)
    assert first.count("| setting | demo |") == len(families.KINDS) + 1

    # A line was cut off: only this scene is measured again, and the tables are the same.
    file = tmp_path / "demo.jsonl"
    file.write_text(file.read_text()[:-20])
    run(monkeypatch, tmp_path)
    assert capsys.readouterr().out == first
    monkeypatch.setattr(families, "measure", None)
    run(monkeypatch, tmp_path, "--by-class")
    again = capsys.readouterr().out
    assert again.startswith(first)
    assert again.count("\n| background | 2 | ") == len(families.KINDS)
    assert again.count("\n| mean of images | all | ") == len(families.KINDS)


def test_an_absent_object_is_named_and_not_drawn(host: SimpleNamespace) -> None:
    from benchmarks.minis.subjects import open_subject

    demo = open_subject("demo")
    full, bare, absent = (demo.case(families.CHOOSING_SEED, 1, kind) for kind in families.KINDS)
    assert np.array_equal(full.truth, absent.truth) and np.array_equal(full.truth, bare.truth)
    assert absent.phrases[:-1] == full.phrases == bare.phrases and absent.absent == 1
    assert absent.classes[-1] not in np.unique(absent.truth)
    assert " on " in full.text and " on " not in bare.text and absent.phrases[-1] in absent.text


def test_a_stage_of_a_demo_model_is_known_by_its_file(host: SimpleNamespace) -> None:
    from benchmarks.minis.subjects import open_subject
    from goca_core.capture.weights import BUNDLED

    for kind, file in BUNDLED.items():
        subject = open_subject(str(file))
        assert (
            subject.name == file.stem and KINDS[kind] == subject.case(families.CHOOSING_SEED, 1, "full").truth.shape[-1]
        )


def test_captions_of_miniatures() -> None:
    plan = plan_scene(np.random.default_rng(3))
    full, bare, absent = caption(plan), caption(plan, background=False), caption(plan, absent=True)
    assert full[: len(bare)] == bare and full[len(bare)] == "on"
    assert plan.name(plan.count) in " ".join(absent) and plan.name(plan.count) not in " ".join(full)
    stream = Stream("t5", 32)
    ids = stream.token_ids(absent)
    assert len(stream.rows(ids)) == 32 and len(ids) > len(absent)
