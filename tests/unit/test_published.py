"""What the registry and other packs search for in the files that users get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from scripts import check_registry

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
ADDRESS = re.compile(r"https://(?:raw\.githubusercontent|github)\.com/([\w.-]+/[\w.-]+?)(?=[/#\"]|$)", re.MULTILINE)


def shipped(pattern: str) -> list[Path]:
    """The files that the registry gets: those of git, without what .comfyignore names."""
    names = check_registry.shipped(pattern)
    if names is None:
        pytest.skip("this is no checkout of git")
    return [ROOT / name for name in names]


def value(key: str) -> str:
    found = re.search(rf'^{key} = "(.*)"$', PROJECT, re.MULTILINE)
    assert found is not None, f"{key} is missing in pyproject.toml"
    return found[1]


def test_the_address_is_everywhere_the_same() -> None:
    """The publish workflow replaces it, so no other file needs it."""
    found = set(ADDRESS.findall(PROJECT))
    assert len(found) == 1
    workflow = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert found == {"OWNER/REPOSITORY"} and "s|OWNER/REPOSITORY|$GITHUB_REPOSITORY|g" in workflow
    assert value("Repository") == "https://github.com/OWNER/REPOSITORY"


def test_the_name_cannot_be_changed_later() -> None:
    """The registry wants no "comfyui" in it."""
    assert value("name") == "goca" and value("DisplayName") == "GoCA"
    for graph in [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]:
        names = set(re.findall(r'"cnr_id": "([^"]*)"', graph.read_text(encoding="utf-8")))
        assert names <= {"goca", "comfy-core"} and "goca" in names, graph.name


@pytest.mark.parametrize(("key", "ratio", "most"), [("Icon", 1, 400), ("Banner", 21 / 9, 2100)])
def test_images_of_the_registry(key: str, ratio: float, most: int) -> None:
    path = ROOT / value(key).partition("/main/")[2]
    with Image.open(path) as image:
        assert abs(image.width / image.height - ratio) < 0.01 and image.width <= most
    assert path.stat().st_size < 100_000


def test_extensions_have_the_names_of_the_pack() -> None:
    """All packs share one page: extensions with the same name are dropped, and elements outside of nodes collide."""
    scripts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").rglob("*.js")}
    names = [name for text in scripts.values() for name in re.findall(r'registerExtension\(\{\s*name: "([^"]*)"', text)]
    assert names and all(name.startswith(f"{value('DisplayName').lower()}.") for name in names)
    for path, text in scripts.items():
        assert not re.search(r"document\.(head|body)\.(append|insert)", text), path.name


def test_the_code_page_of_windows() -> None:
    """Python files that a console of Windows cannot show stumble over its code page."""
    files = shipped("*.py")
    assert len(files) > 100
    for path in files:
        path.read_text(encoding="utf-8").encode("cp1252")


def test_the_graphs_for_comfy_test_exist() -> None:
    listed = re.findall(r'^    "(.+\.json)",$', (ROOT / "comfy-test.toml").read_text(encoding="utf-8"), re.MULTILINE)
    graphs = (ROOT / "workflows").glob("*.json")
    assert sorted(listed) == sorted(
        path.name for path in graphs if "GOCA_DemoModel" in path.read_text(encoding="utf-8")
    )
