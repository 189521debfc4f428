#!/usr/bin/env python3
"""Run the example graph on a real ComfyUI, without a browser, and save the results to ./output.

    make demo
    make demo ARGS='--seed 7 --prompt "a dog on snow" --phrases "dog"'

The graph is the template "Every step". It gives an image, one mask per phrase, an overlay and a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from scripts.comfy_server import ComfyServer, NodeError, Prompt, Run, ServerError  # noqa: E402
from scripts.graphs.files import api_file  # noqa: E402

GRAPH = api_file("Every step")
OUTPUT = ROOT / "output"
MASK_NODE = "GOCA_MaskFromTokens"
TEXT_NODES = ("GOCA_EncodePrompt", "GOCA_Words", "CLIPTextEncode")
COLUMNS = ("phrase", "area %", "mean score")


class DemoError(Exception):
    """The demo failed. The message says what to do."""


# -- the graph -------------------------------------------------------------------------------------------------------


def load_graph(path: Path) -> Prompt:
    try:
        graph: Prompt = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DemoError(f"The example graph {path} is missing.") from None
    except json.JSONDecodeError as error:
        raise DemoError(f"The example graph {path} is not valid JSON: {error}") from None
    return graph


def title(node: dict[str, Any]) -> str:
    return str(node.get("_meta", {}).get("title") or node["class_type"])


def put(graph: Prompt, value: Any, names: Iterable[str], kinds: Iterable[str] = ()) -> int:
    """Write `value` into every unconnected input with one of these names. Returns the number of inputs changed."""
    kinds, count = tuple(kinds), 0
    for node in graph.values():
        if (kinds and node["class_type"] not in kinds) or "negative" in title(node).lower():
            continue
        for name in names:
            # A list is a link to another node, which has the value.
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
                count += 1
    return count


def apply_options(graph: Prompt, options: argparse.Namespace) -> None:
    phrases = options.phrases
    if phrases is not None:
        phrases = "\n".join(phrase.strip() for phrase in phrases.replace(";", "\n").splitlines() if phrase.strip())
        if not phrases:
            raise DemoError("--phrases is empty: give at least one phrase from the prompt.")
    wishes: list[tuple[str, Any, tuple[str, ...], tuple[str, ...]]] = [
        ("--seed", options.seed, ("seed", "noise_seed"), ()),
        ("--steps", options.steps, ("steps",), ()),
        ("--prompt", options.prompt, ("text",), TEXT_NODES),
        ("--phrases", phrases, ("phrases",), (MASK_NODE,)),
    ]
    for flag, value, names, kinds in wishes:
        if value is not None and not put(graph, value, names, kinds):
            raise DemoError(f"{flag} cannot be used: the graph has no input {' or '.join(names)} for it.")


# -- terminal output -------------------------------------------------------------------------------------------------


class Progress:
    """Prints one line per node. On a terminal, the steps of a sampler overwrite each other."""

    def __init__(self, graph: Prompt) -> None:
        self.graph = graph
        self.live = sys.stdout.isatty()
        self.done = 0
        self.open_line = False

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        node = str(data.get("node") or "")
        if kind == "executing" and node in self.graph:
            self.done += 1
            self.close()
            print(f"  [{self.done:2d}/{len(self.graph)}] {title(self.graph[node])}", flush=True)
        elif kind == "progress" and data.get("max", 0) > 1:
            line = f"          step {data['value']}/{data['max']}"
            if self.live:
                print("\r" + line, end="", flush=True)
                self.open_line = True
            elif data["value"] == data["max"]:
                print(line, flush=True)

    def close(self) -> None:
        if self.open_line:
            print()
        self.open_line = False


def table_rows(run: Run, graph: Prompt) -> list[tuple[str, str, str]]:
    """One row per image and phrase, from the reports of the mask nodes."""
    rows = []
    for node_id, shown in run.outputs.items():
        if node_id not in graph or graph[node_id]["class_type"] != MASK_NODE:
            continue
        for entry in shown.get("goca_masks", []):
            several = len(entry["area"]) > 1
            for number, (areas, scores) in enumerate(zip(entry["area"], entry["score"], strict=True), start=1):
                for phrase, area, score in zip(entry["phrases"], areas, scores, strict=True):
                    name = f"{phrase} (image {number})" if several else phrase
                    rows.append((name, f"{_percent(area):.1f}", f"{score:.3f}"))
            backgrounds = entry.get("background") or []
            for number, area in enumerate(backgrounds, start=1):
                rows.append((f"background (image {number})" if several else "background", f"{_percent(area):.1f}", ""))
    if not rows:
        raise DemoError(f"The graph ran, but no {MASK_NODE} node reported masks.")
    return rows


def _percent(area: float) -> float:
    return 100.0 * area


def write_tables(rows: list[tuple[str, str, str]], folder: Path) -> None:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---", "---:", "---:"), *rows)]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def print_table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        print("  " + row[0].ljust(widths[0]) + "".join(f"  {row[i].rjust(widths[i])}" for i in (1, 2)))


def saved_files(run: Run, graph: Prompt) -> list[tuple[str, Path]]:
    """(label, path) of every saved image. The labels of masks contain their phrase."""
    files = []
    phrases = [
        phrase for shown in run.outputs.values() for entry in shown.get("goca_masks", []) for phrase in entry["phrases"]
    ]
    for node_id, shown in run.outputs.items():
        images = [image for image in shown.get("images", []) if image.get("type") == "output"]
        name = title(graph[node_id])
        per_phrase = "mask" in name.lower() and len(images) == len(phrases)
        for index, image in enumerate(images):
            label = f"{name}: {phrases[index]}" if per_phrase else name
            files.append((label, OUTPUT / image.get("subfolder", "") / image["filename"]))
    return files


# -- the run ---------------------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace) -> None:
    graph = load_graph(options.graph)
    apply_options(graph, options)
    started = time.monotonic()
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(output=OUTPUT) as server:
        print(f"Running {options.graph.name} ({time.monotonic() - started:.0f} s) ...", flush=True)
        progress = Progress(graph)
        try:
            run = server.run(graph, progress)
        finally:
            progress.close()
    files = saved_files(run, graph)
    missing = [str(path) for _, path in files if not path.is_file()]
    if missing or not files:
        raise DemoError(f"The graph ran, but images are missing: {', '.join(missing) or 'none was saved'}.")
    rows = table_rows(run, graph)
    write_tables(rows, OUTPUT)
    print()
    print_table(rows)
    print()
    for label, path in files:
        print(f"  {_relative(path)}  ({label})")
    print(f"  {_relative(OUTPUT / 'table.csv')}, {_relative(OUTPUT / 'table.md')}  (the table)")
    print(f"Done in {time.monotonic() - started:.0f} s.")


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make masks from the words of a prompt on a real ComfyUI, and save them to ./output."
    )
    parser.add_argument("--seed", type=int, help="seed of the sampler")
    parser.add_argument("--steps", type=int, help="number of sampling steps")
    parser.add_argument("--prompt", help="the positive prompt")
    parser.add_argument("--phrases", help="phrases of the prompt to make masks for, separated by newlines or ;")
    parser.add_argument("--graph", type=Path, default=GRAPH, help="another graph in API format")
    options = parser.parse_args()
    try:
        demo(options)
    except NodeError as error:
        print(f"demo: node {error.node_id} ({error.node_type}) failed: {error.message}", file=sys.stderr)
    except (DemoError, ServerError) as error:
        print(f"demo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("demo: interrupted.", file=sys.stderr)
        return 130
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
