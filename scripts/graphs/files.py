"""The example graphs, by their titles.

ComfyUI shows a template by the name of its file alone: a number for the order, the title, and in brackets what it shows.
"""

from __future__ import annotations

from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def graph_file(title: str, folder: Path = WORKFLOWS) -> Path:
    """The graph of this title, such as "Every step"; in `WORKFLOWS / "api"` the same graph in API format."""
    found = list(folder.glob(f"?? {title} (*).json"))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files in {folder.name}/ have the title {title!r}.")
    return found[0]


def api_file(title: str) -> Path:
    return graph_file(title, WORKFLOWS / "api")
