"""Long work tells how far it is by ComfyUI's own progress events, and ends when ComfyUI is asked to."""

from __future__ import annotations

import urllib.request
from typing import Any

import comfy.utils
import pytest

from goca_core.capture.families import plan_of
from scripts import demo
from scripts.comfy_server import ComfyServer, Prompt, ServerError
from scripts.graphs.files import api_file
from tests.conftest import ROOT, need
from tests.shapes import of_shapes

from . import tiny
from .segmenting import latents, recording_of

Seen = list[tuple[str, int, int]]  # node, how far, of how much


def graph(name: str, seed: int) -> Prompt:
    """A graph of the demo model with a seed that no other test has, so that nothing of it has run before."""
    need((ROOT / "demo" / "goca_demo.safetensors").is_file(), "the demo model has no weights yet")
    prompt = of_shapes(demo.load_graph(api_file(name)))
    assert demo.put(prompt, seed, ["seed"])
    return prompt


def segmenting(seed: int, draws: int) -> tuple[Prompt, str]:
    prompt = graph("Masks of a photo", seed)
    assert demo.put(prompt, 2, ["steps"]) and demo.put(prompt, draws, ["draws"])
    (node,) = [key for key, node in prompt.items() if node["class_type"] == "GOCA_SegmentImage"]
    return prompt, node


def guiding(seed: int, steps: int) -> tuple[Prompt, str]:
    """One sampler under semantic guidance."""
    prompt = graph("Semantic guidance", seed)
    assert demo.put(prompt, steps, ["steps"])
    guided = [key for key, node in prompt.items() if node["class_type"] == "GOCA_SemanticCFG"]
    samplers = [key for key, node in prompt.items() if node["class_type"] == "KSampler"]
    node = next(key for key in samplers if prompt[key]["inputs"]["model"][0] in guided)
    wanted = {node}
    for _ in prompt:
        wanted |= {v[0] for key in wanted for v in prompt[key]["inputs"].values() if isinstance(v, list)}
    decode = next(key for key, other in prompt.items() if other["inputs"].get("samples") == [node, 0])
    save = next(key for key, other in prompt.items() if other["inputs"].get("images") == [decode, 0])
    return {key: other for key, other in prompt.items() if key in wanted | {decode, save}}, node


def watched(server: ComfyServer, prompt: Prompt, seen: Seen, stop: str = "") -> None:
    """Run a prompt and note its progress; with `stop`, interrupt at the first word of that node."""

    def listen(kind: str, data: dict[str, Any]) -> None:
        if kind != "progress":
            return
        seen.append((data["node"], data["value"], data["max"]))
        if data["node"] == stop and [node for node, *_ in seen].count(stop) == 1:
            urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"{}"), timeout=60).close()

    server.run(prompt, listener=listen)


def test_segmenting_and_guided_sampling_tell_how_far_they_are(server: ComfyServer) -> None:
    for prompt, node in (segmenting(seed=9101, draws=3), guiding(seed=9102, steps=4)):
        seen: Seen = []
        watched(server, prompt, seen)
        ours = [(value, most) for key, value, most in seen if key == node]
        values, (most,) = [value for value, _ in ours], {most for _, most in ours}
        assert values == sorted(set(values)) and values[-1] == most and values[0] < most


@pytest.mark.parametrize("work", [segmenting, guiding])
def test_an_interrupt_ends_it_and_the_next_prompt_runs(server: ComfyServer, work: Any) -> None:
    seen: Seen = []
    prompt, node = work(9103, 60)
    with pytest.raises(ServerError, match="interrupted"):
        watched(server, prompt, seen, stop=node)
    _, value, most = seen[-1]
    assert seen[-1][0] == node and value < most
    prompt, node = work(9104, 2)
    assert node in server.run(prompt).executed


@pytest.mark.usefixtures("host")
def test_segmenting_a_batch_tells_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_PERCENT", 0.0, raising=False)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, most, *_, **__: seen.append((value, most)))
    recording_of(built.model, latents(batch=3), built.conditioning(seed=1), draws=2)
    layers = sum(1 for block in plan_of(built.model.model).blocks for _ in block.sites)
    assert layers > 8
    assert seen == [(value, 2 * layers) for value in range(1, 2 * layers + 1)]
