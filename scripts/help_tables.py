#!/usr/bin/env python3
"""Write the tables of inputs and outputs in the help pages (web/docs), and the list of models, from the nodes themselves.

    .host/venv/bin/python scripts/help_tables.py            # write them
    .host/venv/bin/python scripts/help_tables.py --check    # fail when a page is stale

The descriptions are the tooltips in nodes/*.py; the models come from FAMILIES. It needs ComfyUI's Python, but no server.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from goca_core.capture.families import FAMILIES
from scripts.boot import boot

ROOT = Path(__file__).resolve().parents[1]
PACK = "goca_pack"
FOLDER = ROOT / "web" / "docs"
Info = dict[str, Any]


def load_infos() -> dict[str, Info]:
    """What ComfyUI tells the editor about each node; ComfyUI's modules are loaded in this process."""
    boot("--cpu")
    # The pack's folder may have any name; its nodes import one another as parts of a package.
    package = sys.modules[PACK] = ModuleType(PACK)
    package.__path__ = [str(ROOT)]
    infos = [node.GET_NODE_INFO_V1() for node in importlib.import_module(f"{PACK}.nodes").NODES]
    return {info["name"]: info for info in infos}


def _number(value: float) -> str:
    return format(Decimal(repr(value)).normalize(), "f")


def _kind(kind: str, options: Info) -> str:
    """The type of an input, with the values that it takes."""
    if "options" in options:
        names = [option["key"] if isinstance(option, dict) else option for option in options["options"]]
        files = not names or Path(names[0]).suffix  # those of one machine
        return "one of the files" if files else ", ".join(f"`{name}`" for name in names)
    if "max" in options:
        low, high = _number(options["min"]), _number(options["max"])
        return f"{kind}, {low} or more" if options["max"] > 1 << 32 else f"{kind}, {low} to {high}"
    return kind.replace(",", ", ")


def _default(kind: str, options: Info) -> str:
    value = options.get("default")
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return _number(value)
    if kind == "COMFY_DYNAMICCOMBO_V3":  # it starts with its first choice
        value = options["options"][0]["key"]
    return "" if value is None else f"`{value}`" if value else "empty"


def _rows(inputs: Info, condition: str = "") -> Iterator[tuple[str, ...]]:
    """One row for each input; a choice is followed by the inputs that it brings with it."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in inputs.get(group, {}).items():
            options = rest[0]
            optional = group == "optional" and "default" not in options  # a widget always has a value
            mark = " (optional)" if optional else " (advanced)" if options.get("advanced") else ""
            label = f"**{options.get('display_name', name)}**{mark}"
            yield label, _kind(kind, options), _default(kind, options), condition + options["tooltip"]
            for choice in options["options"] if kind == "COMFY_DYNAMICCOMBO_V3" else ():
                yield from _rows(choice["inputs"], f"Only with *{name}* = `{choice['key']}`. ")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)) if lines else "None."


def renewed(page: str, info: Info) -> str:
    """The text of a help page with its generated parts as they should be. Raises ValueError when a mark is missing."""
    outputs = zip((f"**{name}**" for name in info["output_name"]), info["output"], info["output_tooltips"], strict=True)
    generated = {
        "inputs": _table(("input", "type or values", "default", "what it does"), _rows(info["input"])),
        "outputs": _table(("output", "type", "what it is"), outputs),
        "models": "\n".join(f"* {family.support.models}" for family in FAMILIES),
    }
    for mark, text in generated.items():
        before, start, rest = page.partition(f"<!-- {mark} -->")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        if end:
            page = f"{before}{start}\n\n{text}\n\n{end}{after}"
        elif start or mark != "models":  # only one page lists the models
            raise ValueError(f"{info['name']}.md has no place for a table: add <!-- {mark} --> and <!-- /{mark} -->.")
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables in the help pages, or check them.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    check = parser.parse_args().check
    pages = {FOLDER / f"{name}.md": info for name, info in load_infos().items()}
    texts = {path: renewed(path.read_text("utf-8"), info) for path, info in pages.items()}
    stale = {path: text for path, text in texts.items() if text != path.read_text("utf-8")}
    for path, text in stale.items():
        if check:
            print(f"web/docs/{path.name} is stale: run python scripts/help_tables.py", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
