#!/usr/bin/env python3
"""Tell in how many workflows attention can be recorded, and in how many the words of the prompt are known.

    .host/venv/bin/python scripts/coverage.py ~/ComfyUI/user/default/workflows
    .host/venv/bin/python scripts/coverage.py FOLDER --list     # every graph with what was found in it

Counts graphs that make images or videos from text, with subgraphs opened. Of the others it says how many there are. Needs
torch, but not ComfyUI. ComfyUI's own templates are in the package comfyui-workflow-templates-json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts.coverage_models import NETWORKS, network_of
from scripts.workflow_nodes import Graph, Node, flat, is_workflow

LOADERS = {
    "UNETLoader", "CheckpointLoaderSimple", "CheckpointLoader", "ImageOnlyCheckpointLoader", "UnetLoaderGGUF",
    "DiffusionModelLoaderKJ",
}  # fmt: skip
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Nodes that encode a prompt, of which the tests know that its words are found.
ENCODERS = {
    "CLIPTextEncode", "CLIPTextEncodeFlux", "CLIPTextEncodeSDXL", "CLIPTextEncodeSDXLRefiner", "CLIPTextEncodeSD3",
    "CLIPTextEncodeHunyuanDiT", "CLIPTextEncodeHiDream", "CLIPTextEncodePixArtAlpha", "CLIPTextEncodeLumina2",
    "CLIPTextEncodeKandinsky5", "TextEncodeZImageOmni", "GOCA_EncodePrompt", "TextEncodeQwenImageEdit",
    "TextEncodeQwenImageEditPlus", "TextEncodeQwenImage21", "TextEncodeBooguEdit", "TextEncodeMageFlowEdit",
    "TextEncodeJoyImageEdit", "TextEncodeMingImageEdit", "MiniMaxH3ImageToVideo", "MiniMaxH3ReferenceToVideo",
}  # fmt: skip
OTHER_ENCODERS = {"TextEncodeMOSSImageEdit", "TextEncodeFibo2"}
# Nodes that hide the attention of a network, or give it a piece of a video at a time.
HIDING = {
    ("BlockSparseAttention", "MiniMax-H3"): "Model Sparse Attention replaces its blocks as a whole",
    ("ContextWindowsManual", ""): "context windows generate the video a few frames at a time",
    ("SamplerARVideo", ""): "the sampler generates the video piece by piece",
    ("USOStyleReference", ""): "USO adds tokens to the prompt's",
}
MUTED = (2, 4)  # the modes of nodes that do not run


@dataclass(frozen=True)
class Run:
    """A sampler of a graph: the network that it runs, and the nodes that encode its prompt and change its model."""

    network: str
    encoders: tuple[str, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a graph needs to be recorded: the runs of its samplers that have a prompt."""

    name: str
    runs: tuple[Run, ...] = field(default=())

    def to_json(self) -> list[Any]:
        return [self.name, *([run.network, list(run.encoders), list(run.nodes)] for run in self.runs)]

    @classmethod
    def from_json(cls, data: list[Any]) -> Needs:
        return cls(data[0], tuple(Run(network, tuple(own), tuple(more)) for network, own, more in data[1:]))


def obstacle(run: Run) -> str:
    """Why a run cannot be recorded; empty if it can."""
    network = NETWORKS.get(run.network)
    if network is None or not network.path:
        return f"its model is unknown ({run.network or 'unknown file'})"
    if not network.family:
        return f"its model is not supported ({run.network})"
    found = (HIDING.get((node, own)) for node in run.nodes for own in (run.network, ""))
    return next(filter(None, found), "")


def wordless(run: Run) -> str:
    """Why the words of a recorded run are unknown; empty if they are known."""
    if not NETWORKS[run.network].has_words:
        return f"the tokens of its text encoder cannot be traced to words ({run.network})"
    unknown = [node for node in run.encoders if node not in ENCODERS]
    return f"the words of {unknown[0]} are unknown" if unknown else ""


def judge(needs: Needs) -> tuple[bool, bool, str]:
    """Whether a graph can be recorded, whether the words of a recorded prompt are known, and if not, why."""
    obstacles = {run: obstacle(run) for run in needs.runs}
    open_runs = [run for run, reason in obstacles.items() if not reason]
    if not open_runs:
        return False, False, next(iter(obstacles.values()))
    reasons = [wordless(run) for run in open_runs]
    return True, not all(reasons), "" if not all(reasons) else reasons[0]


def needs_of(name: str, graph: Graph) -> Needs | None:
    """What a graph needs; None if it makes no image or video from text."""
    runs = [run for node in graph.values() for run in _runs(graph, node)]
    makes = {NETWORKS[run.network].path or run.network for run in runs if run.network in NETWORKS}
    if not runs or (makes <= {"sound", "shapes", "detection"} and makes):
        return None
    kept = [run for run in runs if run.network not in ("sound", "shapes", "detection")]
    return Needs(name, tuple(dict.fromkeys(kept))) if kept else None


def _runs(graph: Graph, node: Node) -> Iterator[Run]:
    if node.kind not in SAMPLERS or node.mode in MUTED:
        return
    path = list(_upstream(graph, node, ("MODEL", "GUIDER"), ("model", "guider")))
    loaders = [found for found in path if found.kind in LOADERS]
    encoders = sorted({found.kind for found in _encoders(graph, node)})
    if not encoders:
        return
    files = [network_of(str(value)) for found in loaders for value in found.values if isinstance(value, str)]
    changing = {kind for kind, _ in HIDING}
    others = sorted({found.kind for found in [*path, *_upstream(graph, node, ("SAMPLER",), ("sampler",))]} & changing)
    for network in dict.fromkeys(filter(None, files)) if any(files) else [""]:
        yield Run(network, tuple(encoders), tuple(others))


def _upstream(graph: Graph, node: Node, types: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Node]:
    """All nodes that inputs of these types, or of these names where types are unknown, lead to."""
    todo, seen = [node], set()
    while todo:
        current = todo.pop()
        for entry in current.inputs:
            source = graph.get(entry.source)
            wanted = entry.type in types or entry.type == "*" or (not entry.type and entry.name.startswith(names))
            if source is not None and wanted and source.id not in seen:
                seen.add(source.id)
                yield source
                todo.append(source)


def _encoders(graph: Graph, sampler: Node) -> Iterator[Node]:
    """The nodes that encode the positive prompt of a sampler."""
    seen = set()

    def visit(node: Node, slot: int) -> Iterator[Node]:
        if (node.id, slot) in seen:
            return
        seen.add((node.id, slot))
        if node.kind in ENCODERS | OTHER_ENCODERS or any(entry.type == "CLIP" for entry in node.inputs):
            yield node
            return
        sides = [entry for entry in node.inputs if entry.name in ("positive", "negative")]
        for entry in node.inputs:
            is_prompt = entry.type in ("CONDITIONING", "GUIDER", "*") or (
                not entry.type and entry.name.startswith(("positive", "conditioning", "guider", "on_", "cond"))
            )
            # Nodes with both prompts hand them on in this order; a guider and a sampler take the positive one.
            other = len(sides) == 2 and slot in (0, 1) and entry in sides and entry is not sides[slot]
            if is_prompt and entry.name not in ("negative",) * (slot < 0) and not other:
                source = graph.get(entry.source)
                if source is not None:
                    yield from visit(source, -1 if entry.type == "GUIDER" or entry.name == "guider" else entry.slot)

    yield from visit(sampler, -1)


def read(folder: Path) -> tuple[list[Needs], int]:
    """What each graph from text in a folder needs, and the number of all workflows in it."""
    found, count = [], 0
    for path in sorted(folder.rglob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if is_workflow(data):
            count += 1
            needs = needs_of(path.stem, flat(data))
            if needs is not None:
                found.append(needs)
    return found, count


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder with workflow files")
    parser.add_argument("--list", action="store_true", help="show every graph")
    parser.add_argument("--pin", type=Path, help="write what the graphs need to this file")
    asked = parser.parse_args()
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is no folder; name one with workflow files")
    graphs, count = read(asked.folder)
    if asked.pin is not None:
        lines = ",\n".join(json.dumps(needs.to_json(), ensure_ascii=False) for needs in graphs)
        asked.pin.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(report(graphs, count, asked.list))
    return 0


def report(graphs: list[Needs], count: int, show: bool = False) -> str:
    verdicts = {needs.name: judge(needs) for needs in graphs}
    lines = [
        f"{name}: {'words' if words else 'recordable' if recordable else 'not'}{f' ({why})' if why else ''}"
        for name, (recordable, words, why) in verdicts.items()
        if show
    ]
    recordable = sum(each[0] for each in verdicts.values())
    words = sum(each[1] for each in verdicts.values())
    lines.append(f"{count} workflows, {len(graphs)} make images or videos from text.")
    lines.append(f"{recordable} of these can be recorded; in {words} the words of the prompt are known.")
    for title, kept in (("Not recordable", False), ("Recordable, but words are unknown", True)):
        reasons = Counter(why for done, words, why in verdicts.values() if done is kept and not words)
        lines += [f"{title}:", *(f"  {number:3} {why}" for why, number in reasons.most_common())] if reasons else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
