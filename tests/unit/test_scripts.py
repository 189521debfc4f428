"""What the scripts print and compute when ComfyUI does not run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu
from goca_core.capture.families import FAMILIES
from scripts import demo, mutation, support_table
from scripts import host as provider
from scripts.comfy_server import Run, prepare_base

ROOT = Path(__file__).resolve().parents[2]


def graph() -> demo.Prompt:
    return {
        "1": {"class_type": "GOCA_EncodePrompt", "inputs": {"text": "a cat", "clip": ["9", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "Negative prompt"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}},
        "4": {"class_type": "GOCA_MaskFromTokens", "inputs": {"phrases": "cat"}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}, "_meta": {"title": "Masks"}},
    }


def run_with(entry: dict[str, object]) -> Run:
    images = [{"filename": f"mask_{i}.png", "subfolder": "", "type": "output"} for i in (1, 2)]
    return Run("id", 1.0, {"4": {"goca_masks": [entry]}, "5": {"images": images}})


ENTRY = {"phrases": ["red cat", "dog"], "area": [[0.25, 0.5]], "score": [[0.75, 0.5]], "background": [0.25]}


def test_options_reach_the_graph() -> None:
    changed = graph()
    options = argparse.Namespace(seed=7, steps=4, prompt="a dog", phrases="dog; ear ;")
    demo.apply_options(changed, options)
    assert changed["3"]["inputs"] == {"seed": 7, "steps": 4}
    assert changed["1"]["inputs"]["text"] == "a dog"
    assert changed["2"]["inputs"]["text"] == ""
    assert changed["4"]["inputs"]["phrases"] == "dog\near"


def test_an_option_without_a_place_is_an_error() -> None:
    options = argparse.Namespace(seed=7, steps=None, prompt=None, phrases=None)
    with pytest.raises(demo.DemoError, match="--seed"):
        demo.apply_options({"1": graph()["1"]}, options)


def test_table(tmp_path: Path) -> None:
    rows = demo.table_rows(run_with(ENTRY), graph())
    assert rows == [("red cat", "25.0", "0.750"), ("dog", "50.0", "0.500"), ("background", "25.0", "")]
    demo.write_tables(rows, tmp_path)
    assert (tmp_path / "table.csv").read_text("utf-8").splitlines()[1] == "red cat,25.0,0.750"
    assert (tmp_path / "table.md").read_text("utf-8").startswith("| phrase | area % | mean score |\n| --- |")


def test_masks_are_named_by_their_phrases() -> None:
    files = demo.saved_files(run_with(ENTRY), graph())
    assert [label for label, _ in files] == ["Masks: red cat", "Masks: dog"]


def test_no_report_is_an_error() -> None:
    with pytest.raises(demo.DemoError, match="GOCA_MaskFromTokens"):
        demo.table_rows(Run("id", 1.0, {}), graph())


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT)


def test_a_folder_that_is_no_host_is_named(tmp_path: Path) -> None:
    done = script("host.py", COMFYUI_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == f"make host: COMFYUI_DIR={tmp_path} contains no ComfyUI: there is no main.py in it."


def test_a_python_that_cannot_run_comfyui_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.py").touch()
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'ModuleNotFoundError: torch' >&2\nexit 1\n", encoding="utf-8")
    bare.chmod(0o755)
    done = script("host.py", COMFYUI_DIR=str(tmp_path), COMFYUI_PYTHON=str(bare))
    assert done.returncode == 1
    assert "cannot run ComfyUI: ModuleNotFoundError" in done.stderr.strip().splitlines()[-1]


def test_a_users_checkout_is_used_in_place(tmp_path: Path) -> None:
    done = script("host.py", "--print", COMFYUI_DIR=str(tmp_path), COMFYUI_PYTHON=sys.executable)
    assert done.stdout.splitlines() == [f"dir={tmp_path}", f"python={sys.executable}"]


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements-test.txt", "host-lock.txt"])
def test_another_requirement_is_installed_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    for name in ("requirements.txt", "requirements-test.txt", "host-lock.txt"):
        (tmp_path / name).write_text("a==1\n", encoding="utf-8")
    monkeypatch.setattr(provider, "TEST_REQUIREMENTS", tmp_path / "requirements-test.txt")
    monkeypatch.setattr(provider, "LOCK", tmp_path / "host-lock.txt")
    at = provider.Host(tmp_path, Path(sys.executable))
    before = provider._digest(at)
    assert provider._digest(at) == before
    (tmp_path / changed).write_text("a==1\nb==2\n", encoding="utf-8")
    assert provider._digest(at) != before


def packed(release: provider.Release) -> None:
    """The source archive of a release, with what must not come out of it too."""
    release.archive.parent.mkdir()
    source = release.archive.parent / "file"
    source.write_text(f'__version__ = "{release.version}"\n', encoding="utf-8")
    with tarfile.open(release.archive, "w:gz") as tar:
        inside = f"{provider.SDIST_FOLDER}/main.py", f"{provider.SDIST_FOLDER}/comfyui_version.py"
        for name in ("setup.py", *inside, f"{provider.SDIST_FOLDER}/../escape.py"):
            tar.add(source, f"{release.archive.name.removesuffix('.tar.gz')}/{name}")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> provider.Release:
    monkeypatch.setattr(provider, "STORE", tmp_path)
    packed(provider.Release("1.2.3", "4.5.6", ""))
    return provider.Release("1.2.3", "4.5.6", provider._sha256(provider.Release("1.2.3", "4.5.6", "").archive))


def test_only_comfyui_is_unpacked(tmp_path: Path, release: provider.Release) -> None:
    provider.provide_release(release, tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"main.py", "comfyui_version.py"}


def test_a_damaged_archive_is_noticed(
    tmp_path: Path, release: provider.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_arguments: object, **_options: object) -> int:
        release.archive.write_bytes(b"half of it")
        return 0

    monkeypatch.setattr(provider, "run_pip", download)
    monkeypatch.setattr(provider, "_tool_python", lambda: Path(sys.executable))
    release.archive.write_bytes(b"something else")
    with pytest.raises(provider.SetupError, match="wrong sha256"):
        provider.provide_release(release, tmp_path / "tree")
    assert not release.archive.exists() and not (tmp_path / "tree").exists()


def test_the_base_directory_links_the_pack(tmp_path: Path) -> None:
    for _ in range(2):
        prepare_base(tmp_path)
    assert (tmp_path / "custom_nodes" / "comfyui-goca").resolve() == ROOT


def test_the_graph_of_the_demo_saves_what_it_promises() -> None:
    nodes = json.loads(demo.GRAPH.read_text("utf-8")).values()
    assert any(node["class_type"] == demo.MASK_NODE for node in nodes)
    titles = [demo.title(node).lower() for node in nodes if node["class_type"] == "SaveImage"]
    for wanted in ("image", "mask", "overlay"):
        assert any(wanted in title for title in titles), f"no SaveImage node is titled {wanted}"


def test_the_support_table_is_up_to_date() -> None:
    page = support_table.PAGE.read_text(encoding="utf-8")
    assert support_table.renewed(page) == page, "run scripts/support_table.py"
    assert all(family.support.models in page for family in FAMILIES)
    with pytest.raises(ValueError, match="no place for the table"):
        support_table.renewed("# Nothing here")


def test_mutation_runs_the_tests_that_import_a_module() -> None:
    assert "tests/unit/test_masks.py" in mutation.tests_of(["masks"])
    assert "tests/unit/test_rescale.py" not in mutation.tests_of(["masks"])
    # A package is changed as a whole, and a module of it alone.
    assert set(mutation.tests_of(["capture/window"])) <= set(mutation.tests_of(["capture"]))
    assert mutation.sources(["masks", "capture"]) == ["goca_core/masks.py", "goca_core/capture/*"]
    assert "tests/unit/test_masks.py" in mutation.tests_of(mutation.METHOD)
    assert len(mutation.sources(mutation.METHOD)) == len(mutation.METHOD)
    for search in (mutation.sources, mutation.tests_of):
        with pytest.raises(mutation.MutationError, match="nothing"):
            search(["nothing"])


def test_the_table_of_mutation_counts_modules_and_all() -> None:
    told = {"goca_core.masks.x_a__mutmut_1": "killed", "goca_core.masks.x_a__mutmut_2": "survived"}
    told |= {"goca_core.words.text.x_b__mutmut_1": "timeout", "goca_core.words.text.x_b__mutmut_2": "no tests"}
    rows = [line.split() for line in mutation.table(told)]
    assert [row[0] for row in rows] == ["masks", "words.text", "together"]
    assert [(row[1], row[3], row[-1]) for row in rows] == [("1", "2", "50.0%")] * 2 + [("2", "4", "50.0%")]


# -- the benchmark for a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "limit", "expected"),
    [
        ("print('figure: forward | 3 ms'); print('noise')", 30.0, ["forward | 3 ms"]),
        ("print('figure: forward | 3 ms'); raise ValueError('no memory')", 30.0, ["forward | 3 ms", "failed | ValueError: no memory"]),
        ("import time; print('figure: forward | 3 ms', flush=True); time.sleep(60)", 3.0, ["forward | 3 ms", "stopped | after 3 s"]),
    ],
)  # fmt: skip
def test_a_stage_that_fails_or_hangs_costs_only_its_own_figures(code: str, limit: float, expected: list[str]) -> None:
    assert list(gpu.figures([sys.executable, "-c", code], limit)) == expected


def test_benchmarks_start_without_comfyui() -> None:
    """They put it on the path themselves, once they have read their options."""
    code = (
        "import importlib, pkgutil, benchmarks\n"
        "names = [found.name for found in pkgutil.iter_modules(['benchmarks']) if not found.ispkg]\n"
        "for name in names: importlib.import_module(f'benchmarks.{name}')\n"
        "import sys; assert len(names) > 15 and 'comfy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
