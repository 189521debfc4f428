"""The examples in public docstrings, and the notebook page, do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import goca_core

ROOT = Path(__file__).resolve().parents[2]


def modules() -> list[str]:
    """Every module that can be imported without ComfyUI."""
    found = ["goca_core", "goca_core.capture.options"]
    for module in pkgutil.walk_packages(goca_core.__path__, "goca_core."):
        if not module.name.startswith("goca_core.capture") and not module.name.endswith("__main__"):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [test for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 2


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert doctest.testfile(str(ROOT / "docs" / "notebook.md"), module_relative=False).failed == 0
