"""The nodes that encode a prompt and find its words."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import pytest
import torch

from .device import repeated


@pytest.fixture(scope="module")
def tiny_clip() -> Any:
    """SD1.5's text encoder with one narrow layer and random weights."""
    config = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": config})
    generator = torch.Generator().manual_seed(0)
    for weight in clip.cond_stage_model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return clip


@pytest.fixture(scope="module")
def words_nodes(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.words")


@pytest.mark.parametrize("text", ["a (red cat:1.3) on a table", "", "cat " * 100])
def test_encode_prompt_is_comfyuis_encoding(
    host: SimpleNamespace, words_nodes: ModuleType, tiny_clip: Any, text: str
) -> None:
    expected = repeated(lambda: host.nodes.CLIPTextEncode().encode(tiny_clip, text)[0][0][0])
    output = words_nodes.EncodePrompt.execute(clip=tiny_clip, text=text)
    ((cond, extra),) = output.result[0]
    ((_, theirs),) = host.nodes.CLIPTextEncode().encode(tiny_clip, text)[0]
    assert torch.equal(cond, expected)
    assert torch.equal(extra["pooled_output"], theirs["pooled_output"])
    assert set(extra) == {*theirs, "goca_words"}
    words = extra["goca_words"]
    assert words.length == cond.shape[1]
    assert output.ui["text"] == (words.describe(),)
    (shown,) = output.ui["goca_words"]
    assert [word["text"] for word in shown["words"]] == [word.text for word in words.words]


def test_the_words_alone(words_nodes: ModuleType, tiny_clip: Any) -> None:
    (words,) = words_nodes.Words.execute(clip=tiny_clip, text="a red cat").result
    assert words.find("red cat") == (2, 3)


def test_no_clip_is_comfyuis_error(host: SimpleNamespace, words_nodes: ModuleType) -> None:
    with pytest.raises(RuntimeError) as theirs:
        host.nodes.CLIPTextEncode().encode(None, "cat")
    for node in (words_nodes.EncodePrompt, words_nodes.Words):
        with pytest.raises(RuntimeError) as ours:
            node.execute(clip=None, text="cat")
        assert str(ours.value) == str(theirs.value)


def test_the_nodes_explain_themselves(words_nodes: ModuleType) -> None:
    for node in (words_nodes.EncodePrompt, words_nodes.Words):
        schema = node.define_schema()
        schema.validate()
        assert schema.node_id.startswith("GOCA_")
        assert (schema.category, bool(schema.description), bool(schema.search_aliases)) == ("GoCA", True, True)
        assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
        text = next(part for part in schema.inputs if part.id == "text")
        assert text.as_dict()["dynamicPrompts"]
        assert text.as_dict()["multiline"]
        page = Path(words_nodes.__file__ or "").parent.parent / "web" / "docs" / f"{schema.node_id}.md"
        assert page.is_file()
