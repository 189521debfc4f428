"""The example graphs, by their titles.

ComfyUI shows a template by the name of its file alone: a number for the order, the title, and in brackets what it shows. It lists
the graphs of one folder, so those in `MORE` are none of the templates.
"""

from __future__ import annotations

from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
MORE = WORKFLOWS / "more"


def graph_file(title: str) -> Path:
    """The graph of this title, such as "Every step"."""
    found = [path for folder in (WORKFLOWS, MORE) for path in folder.glob(f"?? {title} (*).json")]
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files in {WORKFLOWS.name}/ have the title {title!r}.")
    return found[0]


def api_file(title: str) -> Path:
    """The same graph in API format."""
    path = graph_file(title)
    return path.parent / "api" / path.name
