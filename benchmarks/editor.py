"""How much time do the pack's scripts take in the editor while a graph with 20 of its nodes opens?

    .host/venv/bin/python benchmarks/editor.py      # on an otherwise idle machine; needs a Chromium and playwright

The browser's own profiler measures it, in milliseconds. The target is less than 100 ms.
"""

from __future__ import annotations

import copy
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tests.browser.browser import open_editor
from tests.browser.editor import DEMO, Editor

NODES, RUNS = 20, 5
FACES = ("GOCA_EncodePrompt", "GOCA_MaskFromTokens", "GOCA_Overlay")


def graph() -> dict[str, Any]:
    """The graph of every step, with copies of its nodes that have a panel."""
    found: dict[str, Any] = copy.deepcopy(DEMO)
    shown = [node for node in found["nodes"] if node["type"] in FACES]
    for number in range(NODES - len(shown)):
        of = shown[number % len(shown)]
        inputs = [{**entry, "link": None} for entry in of["inputs"]]
        outputs = [{**entry, "links": None} for entry in of["outputs"]]
        place = [of["pos"][0], of["pos"][1] + 900 * (1 + number)]
        found["nodes"].append({**of, "inputs": inputs, "outputs": outputs, "id": 1000 + number, "pos": place})
    return found


def opening(editor: Editor) -> float:
    """Milliseconds spent in the pack's scripts while the graph opens."""
    session = editor.page.context.new_cdp_session(editor.page)
    for command in ("Profiler.enable", "Profiler.start"):
        session.send(command)
    editor.load(graph())
    profile = session.send("Profiler.stop")["profile"]
    session.detach()
    ours = {node["id"] for node in profile["nodes"] if "/extensions/comfyui-goca/" in node["callFrame"]["url"]}
    deltas = zip(profile["samples"], profile["timeDeltas"], strict=True)
    return float(sum(delta for sample, delta in deltas if sample in ours)) / 1000


def main() -> None:
    for vue in (False, True):
        with open_editor(vue=vue) as editor:
            spent = [opening(editor) for _ in range(RUNS)]
        name, median = "Vue" if vue else "classic", statistics.median(spent[1:])
        print(f"{name} nodes: first {spent[0]:.1f} ms, then {median:.1f} ms (median of {RUNS - 1})")


if __name__ == "__main__":
    main()
