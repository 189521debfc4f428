#!/usr/bin/env python3
"""Makes the files in tests/fixtures/VERSION: what this version saves, and the masks that it gives.

    python scripts/make_compat_fixtures.py 0.1.0

tests/host/test_compat.py asks every later version for the same masks. So the files of a version are made once, with a
checkout of that version, and never again: those in 0.1.0 were made by version 0.1.0. Run this with ComfyUI's
interpreter and OMP_NUM_THREADS=1.

demo.safetensors    a recording of the demo model, from Save Attention
video.safetensors   a recording of a tiny Wan with random weights: nine frames, three latent frames
graph.json          the demo graph as the editor saves it
graph_api.json      the same graph as the API takes it
masks.npz           the masks of both recordings and of the graph
masks.json          the inputs of Mask From Tokens that gave them
nodes.json          the inputs and outputs of every node, in order
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from scripts.graphs.files import api_file, graph_file  # noqa: E402

GRAPH = "Every step"
# Prompt, phrases and the size of the latent: small, since a recording holds a map from every cell to every other one.
DEMO = ("a red circle and a blue square on grass", "red circle\nblue square", (12, 20))
VIDEO = ("a red cat on grass", "red cat\ngrass", (8, 12))
MODES: list[dict[str, Any]] = [
    {"mode": "partition", "propagation": 0},
    {"mode": "threshold", "theta": 0.05, "smooth": 1.0},
    {"mode": "soft", "size": "latent"},
]
SEED = 3


def main(version: str) -> None:
    folder = ROOT / "tests" / "fixtures" / version
    folder.mkdir(parents=True)
    shutil.copyfile(graph_file(GRAPH), folder / "graph.json")
    shutil.copyfile(api_file(GRAPH), folder / "graph_api.json")
    masks, nodes = _graph(json.loads((folder / "graph_api.json").read_text(encoding="utf-8")))
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(node)}" for name, node in nodes.items())
    (folder / "nodes.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="goca-fixtures-") as base:
        made, asked = _recordings(folder, Path(base))
    np.savez_compressed(folder / "masks.npz", **masks, **made)
    (folder / "masks.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


def _graph(prompt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The masks that the graph gives on a server, and the nodes of the pack."""
    from PIL import Image

    from scripts.comfy_server import ComfyServer

    (shown,) = [name for name, node in prompt.items() if node["_meta"]["title"] == "Masks"]
    with ComfyServer() as server:
        images = [server.fetch(image) for image in server.run(prompt).outputs[shown]["images"]]
        info = {name: node for name, node in server.object_info().items() if name.startswith("GOCA_")}
    masks = np.stack([np.asarray(Image.open(io.BytesIO(image)))[..., 0] for image in images]) > 127
    return {"graph": masks}, {name: node_of(node) for name, node in sorted(info.items())}


def node_of(info: dict[str, Any]) -> dict[str, Any]:
    """What saved graphs need of a node."""
    return {"inputs": inputs_of(info["input"]), "outputs": list(info["output"])}


def inputs_of(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """Every input in order: its id and type, and for a widget its default, its range or its options."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            more = rest[0] if rest else {}
            options: Any = kind if isinstance(kind, list) else more.get("options")
            entry = {"id": name, "type": "COMBO" if isinstance(kind, list) else kind, "optional": group == "optional"}
            entry |= {key: more[key] for key in ("default", "min", "max", "control_after_generate") if key in more}
            if kind == "COMFY_DYNAMICCOMBO_V3":
                entry["options"] = {choice["key"]: inputs_of(choice["inputs"]) for choice in options}
            elif options is not None and name != "file":  # which files there are depends on the folder
                entry["options"] = options
            found.append(entry)
    return found


def _recordings(folder: Path, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record, save, load again, and make masks of what was loaded: the masks, and the inputs that gave them."""
    from scripts import checkout_runs as runs
    from scripts.checkout_pack import Model, Pack

    pack = Pack(ROOT, base)
    kept = base / "input" / "goca"
    kept.mkdir()
    masks, asked = dict[str, Any](), dict[str, Any]()
    for name, tiny, text, phrases, size in (("demo", (), *DEMO), ("video", (runs._tiny(), "wan21"), *VIDEO)):
        used = Model(pack, *tiny)
        recording, recorder = pack("RecordAttention", model=used.model, **runs.AUTO)
        latent = used.sample(recording, used.prompt(text), used.prompt(""), 1, size, steps=10, seed=SEED)
        attention = pack("CollectAttention", recorder=recorder, latent=latent)
        for place in (folder, kept):
            shutil.copyfile(pack.save(attention, "float16"), place / f"{name}.safetensors")
        for mode in MODES:
            inputs = {"phrases": phrases, "background": "auto", **mode}
            key = f"{name} {mode['mode']}"
            loaded = pack("LoadAttention", file=f"input/{name}.safetensors")
            masks[key], masks[f"{key} background"], _ = pack("MaskFromTokens", source=loaded, **inputs)
            asked[key] = {"recording": name, "inputs": inputs}
    return {key: value.numpy() if "soft" in key else value.numpy().astype(bool) for key, value in masks.items()}, asked


if __name__ == "__main__":
    main(*sys.argv[1:])
