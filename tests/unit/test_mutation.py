"""What scripts/mutation.py measures, and how it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import mutation


def test_modules_and_packages_become_patterns() -> None:
    assert mutation.sources(["heads", "words"]) == ["goca_core/heads.py", "goca_core/words/*"]
    with pytest.raises(mutation.MutationError, match="no module 'hands' in goca_core"):
        mutation.sources(["heads", "hands"])


def test_imports_are_found_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text("import torch\nfrom goca_core import heads\nfrom goca_core.words.text import scan\n")
    assert {"heads", "words/text"} <= set(mutation.imported(file))


@pytest.mark.parametrize("module", mutation.METHOD)
def test_each_module_of_the_method_has_tests_of_its_own(module: str) -> None:
    assert any(Path(file).name.startswith(f"test_{module}") for file in mutation.tests_of([module]))


def test_a_module_without_tests_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    monkeypatch.setattr(mutation.host, "ROOT", tmp_path)
    with pytest.raises(mutation.MutationError, match="No file in tests/unit imports heads or words"):
        mutation.tests_of(["heads", "words"])


def test_the_table_counts_by_module_and_together() -> None:
    found = {
        "goca_core.heads.a__1": "killed",
        "goca_core.heads.a__2": "survived",
        "goca_core.words.text.b__1": "timeout",
    }
    assert [line.split() for line in mutation.table(found)] == [
        ["heads", "1", "of", "2", "found,", "50.0%"],
        ["words.text", "1", "of", "1", "found,", "100.0%"],
        ["together", "2", "of", "3", "found,", "66.7%"],
    ]
