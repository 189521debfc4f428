"""The tables in the help pages are those of the nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from scripts import help_tables

PAGES = sorted(path.stem for path in help_tables.FOLDER.glob("GOCA_*.md"))


def text_of(page: str) -> str:
    return (help_tables.FOLDER / f"{page}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def infos(host: SimpleNamespace, pack: ModuleType) -> dict[str, help_tables.Info]:
    return {page: host.nodes.NODE_CLASS_MAPPINGS[page].GET_NODE_INFO_V1() for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_fresh(infos: dict[str, help_tables.Info], page: str) -> None:
    text = text_of(page)
    assert help_tables.renewed(text, infos[page]) == text, f"run python scripts/help_tables.py ({page}.md is stale)"


def test_every_input_has_a_row(infos: dict[str, help_tables.Info]) -> None:
    for page, info in infos.items():
        for group in ("required", "optional"):
            for name in info["input"].get(group, {}):
                assert f"| **{name}**" in text_of(page)


def test_a_page_without_marks_is_refused(infos: dict[str, help_tables.Info]) -> None:
    with pytest.raises(ValueError, match=r"GOCA_Words\.md .* <!-- inputs -->"):
        help_tables.renewed("# Prompt Words (GoCA)", infos["GOCA_Words"])


def test_the_models_are_listed_once() -> None:
    listing = [page for page in PAGES if "<!-- models -->" in text_of(page)]
    assert listing == ["GOCA_RecordAttention"]


def test_the_command_finds_the_pages_fresh() -> None:
    command = [sys.executable, "scripts/help_tables.py", "--check"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
