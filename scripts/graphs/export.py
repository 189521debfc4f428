#!/usr/bin/env python3
"""Export the example graphs of workflows/ and workflows/more/ in API format to api/ in the same folder, through the editor's own export.

    .host/venv/bin/python scripts/graphs/export.py                          # all of them
    .host/venv/bin/python scripts/graphs/export.py "01 Masks from words"   # those whose names begin so

The files in workflows/ are the source: to change a graph, open it in the editor, save it over its file, and run this. It also
gives the saved file the line breaks of the others. Needs a Chromium and playwright, as tests/browser does; tests/browser fails
when a file in such a folder is not what the editor exports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from scripts.graphs.files import MORE, WORKFLOWS
from tests.browser.browser import open_editor

ROOT = Path(__file__).resolve().parents[2]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the example graphs in API format.")
    parser.add_argument(
        "names", nargs="*", default=[""], help="how the names of the graphs to export begin (default: all)"
    )
    names = tuple(parser.parse_args().names)
    with open_editor() as editor:
        found = [*WORKFLOWS.glob("*.json"), *MORE.glob("*.json")]
        for source in sorted(path for path in found if path.name.startswith(names)):
            target = source.parent / "api" / source.name
            write(source, read(source))
            prompt = editor.load(source).prompt()
            if not target.is_file() or read(target) != prompt:
                write(target, prompt)
                print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
