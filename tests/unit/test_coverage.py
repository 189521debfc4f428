"""The command that tells how many workflows can be recorded, on workflow files and on what ComfyUI's own templates need."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goca_core.capture.families import FAMILIES
from goca_core.capture.tokenizers import TOKENIZERS
from scripts.coverage import HIDING, Needs, Run, judge, needs_of, read, report
from scripts.coverage_models import NETWORKS, network_of
from scripts.workflow_nodes import flat

ROOT = Path(__file__).resolve().parents[2]
PINNED = ROOT / "tests" / "fixtures" / "template_needs.json"


def pinned() -> list[Needs]:
    return [Needs.from_json(data) for data in json.loads(PINNED.read_text(encoding="utf-8"))]


# -- ComfyUI's templates ----------------------------------------------------------------------------------------------------


def test_the_templates_of_comfyui() -> None:
    """The figures in docs/coverage.md: of the package comfyui-workflow-templates-json 0.1.123."""
    graphs = pinned()
    verdicts = [judge(needs) for needs in graphs]
    recordable, words = (sum(verdict[place] for verdict in verdicts) for place in (0, 1))
    assert (len(graphs), recordable, words) == (211, 192, 192)
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert f"{recordable} of {len(graphs)}" in page and f"in {words} of them" in page
    # The rest is listed with reasons.
    for done, known, why in verdicts:
        assert bool(why) is not (done and known)
        assert why.partition(" (")[0] in page or why in page, why


def test_every_network_is_known() -> None:
    names = {family.name for family in FAMILIES}
    for name, network in NETWORKS.items():
        assert network.family in {*names, ""}, name
        assert network.tokenizer in TOKENIZERS or not network.family, name
    recorded = {network.family for network in NETWORKS.values()} - {""}
    assert {"unet", "flux", "flux2", "wan", "ltx2", "minimax-h3", "qwen-image-2.1", "hidream-o1"} <= recorded
    assert NETWORKS["Ming-Image"].family == "ming-image" and NETWORKS["Z-Image"].family == "lumina"
    assert NETWORKS["Z-Image in pixel space"].family == "lumina" and NETWORKS["Kandinsky 6"].family == "kandinsky6"
    assert {name for name, network in NETWORKS.items() if network.path and not network.family} == {"PiD"}
    assert {run.network for needs in pinned() for run in needs.runs} <= set(NETWORKS)


@pytest.mark.parametrize(
    ("file", "network"),
    [
        ("wan2.2_fun_camera_high_noise_14B_fp8_scaled.safetensors", "Wan Fun Camera"),
        ("flux\\FLUX1-dev.safetensors", "Flux.1"),
        ("flux-2-klein-base-9b-fp8.safetensors", "Flux.2 Klein 9B"),
        ("ltx-2.3-22b-dev-fp8.safetensors", "LTX-2"),
        ("z_image_turbo_bf16.safetensors", "Z-Image"),
        ("wan_animate_2_14B_fp8.safetensors", "Wan Animate 2"),
        ("qwen_image_2.1_int8_convrot.safetensors", "Qwen-Image 2.1"),
        ("my_own_merge.safetensors", ""),
    ],
)
def test_files_of_models(file: str, network: str) -> None:
    assert network_of(file) == network


# -- graphs -----------------------------------------------------------------------------------------------------------------


def node(number: int, kind: str, *links: tuple[str, str, int], values: Any = (), mode: int = 0) -> dict[str, Any]:
    inputs = [{"name": name, "type": type_, "link": link} for name, type_, link in links]
    return {"id": number, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": list(values)}


def graph(mode: int = 0, file: str = "z_image_turbo_bf16.safetensors") -> dict[str, Any]:
    """A subgraph with a loader and a sampler, whose prompt is encoded outside of it."""
    sub = {
        "id": "5f",
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "nodes": [
            node(1, "UNETLoader", values=[file, "default"]),
            node(2, "ModelSamplingAuraFlow", ("model", "MODEL", 1)),
            node(
                3, "KSampler", ("model", "MODEL", 2), ("positive", "CONDITIONING", 3), ("negative", "CONDITIONING", 3)
            ),
        ],
        "links": [
            {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0},
            {"id": 2, "origin_id": 2, "origin_slot": 0, "target_id": 3, "target_slot": 0},
            {"id": 3, "origin_id": -10, "origin_slot": 0, "target_id": 3, "target_slot": 1},
            {"id": 4, "origin_id": 3, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
    }
    nodes = [
        node(7, "CLIPTextEncode", ("clip", "CLIP", 9), values=["a cat"]),
        node(8, "5f", ("conditioning", "CONDITIONING", 10), mode=mode),
        node(9, "VAEDecode", ("samples", "LATENT", 11)),
        node(6, "CLIPLoader", values=["qwen_3_4b.safetensors"]),
    ]
    links = [[9, 6, 0, 7, 0, "CLIP"], [10, 7, 0, 8, 0, "CONDITIONING"], [11, 8, 0, 9, 0, "LATENT"]]
    return {"nodes": nodes, "links": links, "definitions": {"subgraphs": [sub]}}


def test_a_graph_with_a_subgraph() -> None:
    opened = flat(graph())
    assert set(opened) == {"6", "7", "9", "8:1", "8:2", "8:3"}
    assert opened["9"].inputs[0].source == "8:3" and opened["8:3"].inputs[1].source == "7"
    assert needs_of("x", opened) == Needs("x", (Run("Z-Image", ("CLIPTextEncode",)),))
    assert needs_of("x", flat(graph(mode=4))) is None
    assert needs_of("x", flat(graph(file="stable_audio_3_medium.safetensors"))) is None


def test_graphs_of_the_api(tmp_path: Path) -> None:
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cat"}},
        "3": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}},
        "4": {
            "class_type": "KSampler",
            "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["5", 0]},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024}},
    }
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.json").write_text(json.dumps(prompt), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(graph(file="unheard_of.safetensors")), encoding="utf-8")
    (tmp_path / "no.json").write_text("[1, 2", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"title": "no workflow"}', encoding="utf-8")
    found, count = read(tmp_path)
    assert count == 2 and found == [
        Needs("b", (Run("", ("CLIPTextEncode",)),)),
        Needs("a", (Run("SDXL", ("CLIPTextEncode",)),)),
    ]
    text = report(found, count, show=True)
    assert "2 workflows, 2 make images" in text and "1 of these can be recorded; in 1 the words" in text
    assert "b: not (its model is unknown (unknown file))" in text


def test_the_reasons() -> None:
    kept = Run("Z-Image", ("CLIPTextEncode",))
    assert judge(Needs("x", (kept,))) == (True, True, "")
    piece = Run("Wan, piece by piece", ("CLIPTextEncode",), ("SamplerARVideo",))
    assert judge(Needs("x", (piece, kept))) == (True, True, "") and not judge(Needs("x", (piece,)))[0]
    assert judge(Needs("x", (replace(kept, encoders=("TextEncodeOther",)),)))[:2] == (True, False)
    for (node_kind, network), why in HIDING.items():
        run = Run(network or "MiniMax-H3", ("CLIPTextEncode",), (node_kind,))
        assert judge(Needs("x", (run,))) == (False, False, why)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(graph()), encoding="utf-8")
    command = [sys.executable, "scripts/coverage.py", str(tmp_path), "--pin", str(tmp_path / "pinned")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of these can be recorded; in 1 the words" in done.stdout
    assert json.loads((tmp_path / "pinned").read_text()) == [["a", ["Z-Image", ["CLIPTextEncode"], []]]]
    done = subprocess.run([*command[:2], str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "is no folder" in done.stderr
