#!/usr/bin/env python3
"""Write locales/en/nodeDefs.json: the names of nodes, inputs and outputs in the editor, and their tooltips.

    .host/venv/bin/python scripts/make_locales.py

The English texts come from the nodes themselves. Other languages are written by hand, under the same keys: this script says
which keys are missing there, and tests/host/test_locales.py fails when one is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("zh", "ja", "ko", "ru")
Texts = dict[str, Any]


def path_of(language: str) -> Path:
    return ROOT / "locales" / language / "nodeDefs.json"


def read(language: str) -> Texts:
    texts: Texts = json.loads(path_of(language).read_text(encoding="utf-8"))
    return texts


def _inputs(group: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Inputs by their keys, including those of dynamic combos. The editor writes dots in keys as underscores."""
    for entries in (group.get("required", {}), group.get("optional", {})):
        for name, (kind, *options) in entries.items():
            yield prefix + name, {"name": name, "tooltip": options[0]["tooltip"]}
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for choice in options[0]["options"]:
                    yield from _inputs(choice["inputs"], f"{prefix}{name}_")


def english(info: dict[str, dict[str, Any]]) -> Texts:
    """The texts of the pack's nodes, from ComfyUI's object info."""
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": dict(_inputs(node["input"])),
            "outputs": {
                str(slot): {"name": output, "tooltip": tooltip}
                for slot, (output, tooltip) in enumerate(
                    zip(node["output_name"], node.get("output_tooltips") or (), strict=True)
                )
            },
        }
        for name, node in info.items()
        if name.startswith("GOCA_")
    }


def keys(texts: Any, prefix: str = "") -> set[str]:
    """The keys of all texts that are not empty."""
    if isinstance(texts, dict):
        return {path for key, inner in texts.items() for path in keys(inner, f"{prefix}/{key}")}
    return {prefix} if str(texts).strip() else set()


def main() -> None:
    with ComfyServer() as server:
        texts = english(server.object_info())
    path_of("en").write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for language in LANGUAGES:
        for key in sorted(keys(texts) ^ keys(read(language))):
            print(f"make_locales: {language} differs at {key}", file=sys.stderr)


if __name__ == "__main__":
    main()
