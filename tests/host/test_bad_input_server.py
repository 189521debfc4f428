"""On a real server, what cannot work is one sentence of the node that was asked for it, and the next prompt runs."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.comfy_server import ComfyServer, NodeError

from .test_edit_graphs import short, weights
from .test_graphs import ancestors, by_type, check_masks

__all__ = ["weights"]  # a fixture that every test here uses

GRAPH = "Every step"
MASKS, RECORD, PROMPT = "GOCA_MaskFromTokens", "GOCA_RecordAttention", "GOCA_EncodePrompt"


@pytest.mark.parametrize(
    ("node", "wrong", "blamed", "said"),
    [
        (MASKS, {"phrases": "red dog"}, MASKS, '"red dog" is not in the prompt, whose words are.*circle.*grass'),
        (MASKS, {"phrases": "circle\ncircle"}, MASKS, "twice"),
        (MASKS, {"phrases": " "}, MASKS, "There is no phrase"),
        (MASKS, {"size": "custom", "width": -1}, MASKS, "-1 smaller than min of 0"),
        (
            RECORD,
            {"window": "percent", "start_percent": 0.4, "end_percent": 0.41},
            "GOCA_CollectAttention",
            "widen the window",
        ),
        (PROMPT, {"text": ""}, MASKS, "red circle"),
    ],
    ids=["a word that is not there", "twice", "no phrase", "a negative size", "no step", "an empty prompt"],
)
def test_the_server_says_it_and_goes_on(
    server: ComfyServer, node: str, wrong: dict[str, Any], blamed: str, said: str
) -> None:
    prompt = short(GRAPH, 2)
    title = "Prompt" if node == PROMPT else ""
    prompt[by_type(prompt, node, title)]["inputs"] |= wrong
    with pytest.raises(NodeError, match=said) as caught:
        server.run(ancestors(prompt, by_type(prompt, "SaveImage", "Masks")))
    assert caught.value.node_type == blamed
    good = short(GRAPH, 2)
    check_masks(server, server.run(good), good, ["red circle", "blue square"], 64)
