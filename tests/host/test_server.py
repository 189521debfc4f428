"""The harness drives a real server: outputs, refusals, errors and progress come through."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from scripts.comfy_server import ComfyServer, NodeError, ServerError

IMAGE: dict[str, dict[str, Any]] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 24, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def test_a_prompt_gives_its_images(server: ComfyServer) -> None:
    kinds: list[str] = []
    run = server.run(IMAGE, listener=lambda kind, data: kinds.append(kind))
    (image,) = run.outputs["2"]["images"]
    assert Image.open(io.BytesIO(server.fetch(image))).size == (24, 16)
    assert "execution_start" in kinds
    assert "2" in run.executed


def test_a_refused_prompt_names_the_node(server: ComfyServer) -> None:
    broken = {**IMAGE, "1": {"class_type": "EmptyImage", "inputs": {"width": 24}}}
    with pytest.raises(NodeError, match="height"):
        server.run(broken)


def test_an_unknown_node_is_refused(server: ComfyServer) -> None:
    with pytest.raises(ServerError, match="Nowhere"):
        server.run({**IMAGE, "1": {"class_type": "Nowhere", "inputs": {}}})


def test_a_node_that_raises_is_named(server: ComfyServer) -> None:
    huge = {**IMAGE, "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}}}
    with pytest.raises(NodeError) as caught:
        server.run(huge)
    assert caught.value.node_type == "LoadImage"


def test_the_pack_is_loaded(server: ComfyServer) -> None:
    assert any(name.startswith("GOCA_") for name in server.object_info())
