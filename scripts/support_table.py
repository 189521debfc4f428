#!/usr/bin/env python3
"""Write the table of supported models in docs/models.md from the list of model families.

    .host/venv/bin/python scripts/support_table.py            # write it
    .host/venv/bin/python scripts/support_table.py --check    # fail if it is out of date

Needs torch, but not ComfyUI.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from goca_core.capture.families import FAMILIES
from goca_core.capture.families.base import Support

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
START, END = "<!-- families: scripts/support_table.py -->", "<!-- end of families -->"
HEAD = ("models", "recorded", "heads", "words of", "layers and settings", "tested with")


def table() -> str:
    rows = [
        (_models(row), row.attention, row.heads, row.words.replace("*", ""), row.settings, row.tested)
        for row in (family.support for family in FAMILIES)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows))


def _models(row: Support) -> str:
    return f"{row.models} (ComfyUI {row.since} or newer)" if row.since else row.models


def renewed(text: str) -> str:
    """The page with an up-to-date table. Raises ValueError if the marks for it are missing."""
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"docs/models.md has no place for the table: it needs the lines {START!r} and {END!r}.")
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of supported models in docs/models.md, or check it.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the table is out of date")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    new = renewed(text)
    if options.check:
        if new != text:
            print(
                "support_table: the table in docs/models.md is out of date; run scripts/support_table.py",
                file=sys.stderr,
            )
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
