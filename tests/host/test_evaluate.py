"""The evaluation with a real model: killed, resumed and shared among workers it counts the same to the last pixel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from goca_core.capture import headless
from goca_core.evaluate import run
from goca_core.evaluate.__main__ import main, parse_arguments
from goca_core.evaluate.results_log import ResultsLog
from goca_core.evaluate.worker import Job

from ..unit.evaluate.layouts import KEYS, Layout
from . import tiny
from .device import ACCELERATED, DEVICE

ROOT = Path(__file__).resolve().parents[2]
SCENES = 6
DEVICE_NAME = torch.cuda.get_device_name(DEVICE) if ACCELERATED else "cpu"
# Several evaluations of each image, which some methods share and some average.
ARGUMENTS = [
    "--count", str(SCENES), "--seed", "41",
    "--methods", "vanilla", "goca", "goca,order=0,rule=max", "goca,layer=mass-preserving,noise=auto+60%,draws=2",
    # Runs in processes of their own take a GPU if there is one; those in this process do as it was started.
    *(["--cpu"] if torch.cuda.is_available() and not ACCELERATED else []),
]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "goca_core.evaluate", *ARGUMENTS, "--sheets", "0", *arguments]


def job() -> Job:
    return parse_arguments([*ARGUMENTS, "--out", "unused"])[0]


def matrices(folder: Path) -> dict[str, Any]:
    """Everything that was counted."""
    dataset = job().open()
    made = run.head(job(), [item.key for item in dataset.items])
    log = ResultsLog(folder / run.LOG, made, run.expected(job(), dataset, dataset.items))
    assert len(log.done) == SCENES
    return {name: np.stack([sums.matrix for sums in row]) for name, row in log.totals(7).items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """To the last pixel. On a GPU, each process may choose other algorithms, which moves a few pixels in a thousand."""
    moved = 5e-3 if ACCELERATED else 0
    return first.keys() == second.keys() and all(
        np.abs(first[name] - second[name]).sum() <= moved * first[name].sum() for name in first
    )


@pytest.fixture(scope="module")
def whole(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process, from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    run.evaluate(job(), folder, sheets=2)
    return folder


def counted(folder: Path) -> int:
    log = folder / run.LOG
    return max(0, log.read_bytes().count(b"\n") - 1) if log.is_file() else 0


def test_a_run_writes_what_it_found(whole: Path) -> None:
    found = json.loads((whole / run.RESULTS).read_text("utf-8"))
    assert found["pictures"] == SCENES and found["devices"] == {DEVICE_NAME: SCENES} and not found["skipped"]
    assert found["settings"]["weights_sha256"] == headless.digest(headless.DEMO_WEIGHTS)
    assert found["versions"]["comfyui"] == headless.version()
    assert list(found["methods"]) == [method.name for method in job().methods]
    for method, sums in matrices(whole).items():
        assert (sums.sum((1, 2)) == SCENES * 64 * 64).all(), method
    assert all((whole / f"{name}.png").is_file() for name in ("best", "median", "worst"))


def test_methods_differ_and_thresholds_matter(whole: Path) -> None:
    found = list(matrices(whole).values())
    assert not any(np.array_equal(found[0], other) for other in found[1:] if other.shape == found[0].shape)
    background = found[1].sum(1)[:, 0]
    assert (np.diff(background) >= 0).all() and background[-1] > background[0]


def test_killed_and_resumed_is_the_same(whole: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(command("--out", str(tmp_path)), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while counted(tmp_path) < 2 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    assert 2 <= counted(tmp_path) < SCENES
    # What a kill in the middle of a line would leave.
    with (tmp_path / run.LOG).open("ab") as log:
        log.write(b'{"key":"scene-46","on":"cpu","counts":{"vanil')
    run.evaluate(job(), tmp_path, sheets=0)
    assert same(matrices(whole), matrices(tmp_path))


def test_two_workers_are_the_same(whole: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--out", str(tmp_path), "--workers", "2"), cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("| run | method |")
    assert same(matrices(whole), matrices(tmp_path))


def test_workers_end_with_a_killed_parent(host: Any, tmp_path: Path) -> None:
    running = subprocess.Popen(
        command("--out", str(tmp_path), "--workers", "2", "--limit", "5"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    workers: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 300
        while counted(tmp_path) < 1 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(running.pid).children(recursive=True)
    finally:
        running.kill()
        running.wait()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


# -- images with something wrong ---------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Layout:
    """Three images in the layout of Pascal VOC."""
    made = Layout("voc", tmp_path / "data")
    labels = np.zeros((40, 56), np.int64)
    labels[5:25, 8:30], labels[0, 0] = 8, 255
    for key in KEYS["voc"]:
        made.add(key, labels)
    return made


def evaluate(made: Layout, out: Path, *arguments: str) -> int:
    return main(
        ["--data", "voc", "--root", str(made.root), "--out", str(out), "--methods", "goca", "--sheets", "1", *arguments]
    )


def test_a_data_set_of_images_of_any_size(host: Any, voc: Layout, tmp_path: Path) -> None:
    for number, how in enumerate(([], ["--keep-aspect"], ["--size", "48", "--prompts", "all"])):
        out = tmp_path / f"out-{number}"
        assert evaluate(voc, out, *how) == 0
        found = json.loads((out / run.RESULTS).read_text("utf-8"))
        assert found["pictures"] == 3 and len(found["classes"]) == 21
        assert 0 <= found["methods"]["goca"]["best"]["accuracy"] <= 1


def test_something_wrong_is_named_and_fatal(
    host: Any, voc: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc.image(KEYS["voc"][1]).unlink()
    assert evaluate(voc, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{KEYS['voc'][1]}.jpg" in said and "--skip-errors" in said and "Traceback" not in said
    assert not (tmp_path / "out" / run.RESULTS).exists()


def test_something_wrong_is_left_out_and_counted(
    host: Any, voc: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc.image(KEYS["voc"][1]).write_bytes(b"no image")
    voc.label(KEYS["voc"][2]).unlink()
    assert evaluate(voc, tmp_path / "out", "--skip-errors") == 0
    assert "2 of 3 images were skipped (1 missing, 1 unreadable)." in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / run.RESULTS).read_text("utf-8"))
    assert found["pictures"] == 1
    assert {one["key"] for one in found["skipped"]} == set(KEYS["voc"][1:])


def test_a_prompt_whose_words_are_lost_is_an_error_of_the_image(
    host: Any, voc: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = dict.fromkeys(KEYS["voc"][:2], "cat, sofa")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    how = ["--prompts", "captions", str(tmp_path / "captions.json")]
    assert evaluate(voc, tmp_path / "out", *how) == 1
    assert KEYS["voc"][2] in capsys.readouterr().err
    assert evaluate(voc, tmp_path / "out", *how, "--skip-errors") == 0


# -- models ------------------------------------------------------------------------------------------------------------


def test_other_weights_of_the_demo_model(host: Any, tmp_path: Path) -> None:
    stage = tmp_path / "stage.safetensors"
    stage.write_bytes(headless.DEMO_WEIGHTS.read_bytes())
    assert headless.open_model(stage).side == 64


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_file_that_is_no_checkpoint_is_named(
    host: Any, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    out = ["--out", str(tmp_path / "out"), "--count", "1"]
    assert main([*out, "--checkpoint", str(tmp_path / "broken.safetensors")]) == 1
    assert "broken.safetensors" in capsys.readouterr().err.splitlines()[-1]
    assert main([*out, "--checkpoint", str(tmp_path / "gone.safetensors")]) == 1
    assert "missing" in capsys.readouterr().err.splitlines()[-1]


def test_noise_levels(host: Any) -> None:
    model = headless.open_model()
    assert model.sigma("auto") == pytest.approx(0.346)
    assert model.sigma("0.5") == 0.5
    assert model.sigma("90%") < model.sigma("75%") < model.sigma("10%")
    with pytest.raises(headless.ComfyUIError, match="outside this model"):
        model.sigma("99999")


def test_sizes(host: Any) -> None:
    model = headless.open_model()
    assert model.multiple == 8
    assert model.size(300, 500, None, False) == (64, 64)
    assert model.size(300, 500, 101, False) == (104, 104)
    height, width = model.size(300, 500, 128, True)
    assert height % 8 == width % 8 == 0 and abs(width / height - 5 / 3) < 0.2
    assert 0.85 < height * width / 128**2 < 1.15


@pytest.mark.slow
def test_a_checkpoint_file(host: Any, tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "sd15.safetensors")
    arguments = ["--checkpoint", str(tmp_path / "sd15.safetensors"), "--size", "64", "--count", "1", "--sheets", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--methods", "goca", "manual"]) == 0
    found = json.loads((tmp_path / "out" / run.RESULTS).read_text("utf-8"))
    assert found["settings"]["weights"] == "sd15.safetensors"
    assert found["pictures"] == 1
