"""The nodes LoRA by Mask and LoRA by Word, and the graph that shows both."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.comfy_server import ComfyServer
from tests.conftest import ROOT

from .lora_files import written
from .test_graphs import by_type, graph, images_of, shortened

LORAS = ROOT / "demo" / "loras"


@pytest.fixture(scope="module")
def demo(host: SimpleNamespace, pack: ModuleType) -> tuple[Any, Any, Any]:
    found: tuple[Any, Any, Any] = host.nodes.NODE_CLASS_MAPPINGS["GOCA_DemoModel"].execute().result
    return found


def test_the_lora_graph_runs(server: ComfyServer) -> None:
    """Both ways change the two things, and the masks say where."""
    prompt = shortened(graph("Two LoRAs"))
    for key in ("GOCA_LoRAByWord",):
        for node in prompt.values():
            if node["class_type"] == key:
                node["inputs"]["start_percent"] = 0.0  # of two steps, the second has masks
    run = server.run(prompt)
    images = {
        title: images_of(server, run, by_type(prompt, "SaveImage", title))[0].astype(float)
        for title in ("Plain image", "Image in one pass", "Image in two passes")
    }
    plain = images.pop("Plain image")
    assert all(abs(image - plain).max() > 4 for image in images.values())
    collected = run.outputs[by_type(prompt, "GOCA_CollectMasks")]["text"][0]
    assert "red circle (" in collected and "goca_demo_dotted.safetensors at 1" in collected
    told = run.outputs[by_type(prompt, "GOCA_LoRAByWord", "Dots on the square")]["text"][0]
    assert told.startswith("goca_demo_dotted.safetensors: ") and "layers" in told


def test_what_does_not_fit_is_said_and_the_server_goes_on(server: ComfyServer) -> None:
    prompt = shortened(graph("Two LoRAs"))
    second = by_type(prompt, "GOCA_LoRAByWord", "Dots on the square")
    prompt[second]["inputs"]["phrase"] = "red circle"
    with pytest.raises(Exception, match='The phrase "red circle" has two LoRAs'):
        server.run(prompt)
    prompt[second]["inputs"]["phrase"] = "blue square"
    assert server.run(prompt).outputs


def test_a_lora_that_is_not_there(host: SimpleNamespace, pack: ModuleType, demo: tuple[Any, Any, Any]) -> None:
    node = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoRAByMask"]
    with pytest.raises(ValueError, match=r'The LoRA "none\.safetensors" is not in the folder models/loras'):
        node.execute(demo[0], "none.safetensors", 1.0, torch.ones(1, 8, 8))


def test_the_demo_loras_say_what_they_are() -> None:
    files = sorted(LORAS.glob("*.safetensors"))
    assert [path.stem for path in files] == ["goca_demo_dotted", "goca_demo_striped"]
    assert all(path.stat().st_size < 1_000_000 for path in files)
    card = (LORAS / "README.md").read_text(encoding="utf-8")
    assert all(path.stem in card for path in files)


# -- the text encoder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clip_with_lora(pack: ModuleType) -> Callable[..., Any]:
    """That of the pack as ComfyUI loaded it, whose prompts have its words."""
    found: Callable[..., Any] = importlib.import_module(f"{pack.__name__}.goca_core.capture.lora.text").clip_with_lora
    return found


def text_lora(clip: Any, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in clip.cond_stage_model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            tensors[f"text_encoders.{name}.lora_down.weight"] = (
                torch.randn(2, module.in_features, generator=generator) * 0.2
            )
            tensors[f"text_encoders.{name}.lora_up.weight"] = torch.randn(module.out_features, 2, generator=generator)
    assert tensors
    return written(folder, tensors, "text.safetensors")


def encoded(clip: Any, text: str) -> Any:
    with torch.inference_mode():
        ((tensor, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return tensor, extra


def test_only_the_words_of_the_phrase_change(
    demo: tuple[Any, Any, Any], clip_with_lora: Callable[..., Any], tmp_path: Path
) -> None:
    _, clip, _ = demo
    path = text_lora(clip, tmp_path)
    prompt, other = "a red circle and a blue square on grass", "a green star"
    before, extra = encoded(clip, prompt)
    whole, _ = encoded(clip_with_lora(clip, path, 0.8), prompt)
    part, kept = encoded(clip_with_lora(clip, path, 0.8, "blue square"), prompt)
    words = extra["goca_words"].word_map() if hasattr(extra["goca_words"], "word_map") else extra["goca_words"]
    own = torch.zeros(77, dtype=torch.bool)
    own[list(words.find("blue square"))] = True
    assert own.sum() == 2
    assert torch.equal(part[0, own], whole[0, own]) and torch.equal(part[0, ~own], before[0, ~own])
    assert (whole - before).abs()[0, own].min() > 0
    assert kept["pooled_output"] is not None and torch.equal(kept["pooled_output"], extra["pooled_output"])
    # A prompt without the phrase stays as it is, and so does the user's CLIP.
    assert torch.equal(encoded(clip_with_lora(clip, path, 0.8, "blue square"), other)[0], encoded(clip, other)[0])
    assert torch.equal(encoded(clip, prompt)[0], before)


def test_two_phrases_and_copies(demo: tuple[Any, Any, Any], clip_with_lora: Callable[..., Any], tmp_path: Path) -> None:
    """One after another, each on its own words, also in copies that other nodes make."""
    _, clip, _ = demo
    path = text_lora(clip, tmp_path)
    prompt = "a red circle and a blue square on grass"
    whole, extra = encoded(clip_with_lora(clip, path, 0.8), prompt)
    words = extra["goca_words"].word_map() if hasattr(extra["goca_words"], "word_map") else extra["goca_words"]
    both = clip_with_lora(clip_with_lora(clip, path, 0.8, "red circle"), path, 0.8, "blue square").clone()
    found, _ = encoded(both, prompt)
    for phrase in ("red circle", "blue square"):
        places = words.find(phrase)
        assert torch.equal(found[0, places], whole[0, places])
