"""The rules of the house (docs/architecture.md), asked of the files themselves."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from scripts import host

ROOT = Path(__file__).resolve().parents[2]


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# -- who may import whom -----------------------------------------------------------------------------------------------


def none(wrong: Iterable[str]) -> None:
    """All breaches of a rule at once."""
    assert not (found := list(wrong)), "\n".join(["", *found])


def test_nodes_multiply_no_matrices() -> None:
    """Nodes do no tensor maths; that they import nothing to do it with, `make check` says."""
    trees = {relative(path): parse(path) for path in python_files("nodes")}
    assert trees
    none(
        f"{name}:{node.lineno} multiplies matrices"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
    )


def test_goca_core_imports_without_comfyui() -> None:
    code = (
        "import importlib, pkgutil, sys, goca_core, goca_core.evaluate\n"
        "for package in (goca_core, goca_core.evaluate):\n"
        "    for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if found.name != 'goca_core.capture': importlib.import_module(found.name)\n"
        "assert not {'comfy', 'folder_paths', 'comfy_api'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_is_nothing_else() -> None:
    names = set()
    for node in parse(ROOT / "__init__.py").body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        else:
            pytest.fail(f"__init__.py:{node.lineno}: {ast.unparse(node)[:60]}")
    assert names - {"__all__"} == {"WEB_DIRECTORY", "comfy_entrypoint"}


# -- every node is documented, shown and tested ------------------------------------------------------------------------


def node_ids() -> list[str]:
    """The literals passed as node_id; computed ids are refused, since saved graphs rely on them."""
    found = []
    for path in python_files("nodes"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "node_id":
                literal = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
                assert literal, f"{relative(path)}: a node id is not a literal"
                found.append(node.value.value)  # type: ignore[attr-defined]
    return found


NODE_IDS = node_ids()


def text_of(folder: str, *suffixes: str) -> str:
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes and path != Path(__file__)]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_node_ids_are_ours_and_unique() -> None:
    assert NODE_IDS
    assert len(NODE_IDS) == len(set(NODE_IDS))
    assert all(re.fullmatch(r"GOCA_[A-Z][A-Za-z]+", node_id) for node_id in NODE_IDS)


def test_every_node_has_a_help_page_and_every_page_a_node() -> None:
    """A page says what the node is for and when to use it, has an image, and says what goes wrong."""
    docs = ROOT / "web" / "docs"
    assert {page.stem for page in docs.glob("*.md")} == set(NODE_IDS)
    for node_id in NODE_IDS:
        page, image = (docs / f"{node_id}.md").read_text(encoding="utf-8"), docs / "images" / f"{node_id}.png"
        assert len(page) > 200, node_id
        assert f"](images/{image.name})" in page, node_id
        assert image.is_file(), f"{image.name} is missing: run scripts/make_screenshots.py"
        assert image.stat().st_size < 100_000, image.name
        assert "## What goes wrong" in page, node_id


def test_every_node_is_in_a_workflow_and_in_a_test() -> None:
    workflows, tests = text_of("workflows", ".json"), text_of("tests", ".py", ".json")
    none(f"no graph in workflows/ shows {node_id}" for node_id in NODE_IDS if f'"{node_id}"' not in workflows)
    none(f"no test names {node_id}" for node_id in NODE_IDS if not re.search(rf"\b{node_id}\b", tests))


def test_workflows_are_sound() -> None:
    paths = sorted((ROOT / "workflows").rglob("*.json"))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        # Names all in capitals are types of wires.
        unknown = set(re.findall(r'"(GOCA_[A-Z]+[a-z][A-Za-z]*)"', text)) - set(NODE_IDS)
        assert not unknown, f"{relative(path)} names nodes that are not there: {unknown}"


# -- the papers --------------------------------------------------------------------------------------------------------


def project(field: str) -> str:
    found = re.search(rf'^{field} = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"pyproject.toml says no {field}"
    return found[1]


def test_versions_agree() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == project("version")


def test_the_oldest_host_asked_for_is_tested() -> None:
    oldest, newest = host.OLDEST.version, host.NEWEST.version
    assert project("requires-comfyui") == f">={oldest}"
    assert f"It needs ComfyUI {oldest} or newer" in (ROOT / "README.md").read_text("utf-8")
    assert f"ComfyUI {oldest} and {newest}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_requirements_agree() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def listed(key: str) -> list[str]:
        found = re.search(rf"^{key} = (\[.*\])$", text, re.MULTILINE)
        assert found, key
        return sorted(ast.literal_eval(found[1]))

    def file(name: str) -> list[str]:
        lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
        return sorted(line for line in lines if line)

    assert listed("dependencies") == file("requirements.txt")
    assert listed("test") == file("requirements-test.txt")
    assert listed("check") == file("requirements-check.txt")


def test_the_readme_is_short_and_says_how_to_start() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.encode()) < 7600, "long tables belong into docs/"
    for wanted in (
        "git clone --depth 1 ",
        "make demo",
        "make test",
        "blueprint",
        "Mask From Image",
        "docs/images/demo.png",
    ):
        assert wanted in readme, wanted


LINK = re.compile(r"\]\((?:<([^>]+)>|([^)\s]+))\)")


def test_links_lead_somewhere() -> None:
    """To files of the pack and to headings in them. Help pages are served alone, so their links are not followed here."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        links = [found[0] or found[1] for found in LINK.findall(page.read_text("utf-8"))]
        for link in (link for link in links if not re.match(r"https?:|mailto:", link)):
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{relative(page)}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert heading in slugs, f"{relative(page)}: {link}"


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".jpg", ".webp", ".npz", ".safetensors", ".gif", ".ico"}:
            yield name, path.read_text(encoding="utf-8", errors="replace")


def test_no_machine_leaks() -> None:
    """No paths of one machine, no package index of one network."""
    forbidden = re.compile(
        r"(?<![\w.~-])/(?:work|root|home|Users)/\w"
        r"|[a-z]:\\Users\\"
        r"|--(?:extra-)?index[-]url|--find[-]links|PIP[_]INDEX[_]URL"  # in a way that does not find itself
        r"|download\.pytorch\.org|pypi\.org/simple|files\.pythonhosted\.org",
        re.IGNORECASE,
    )
    leaks = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert not leaks, "\n".join(leaks)


def test_scripts_are_executable() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
