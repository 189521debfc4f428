"""The graph that a user has, with two nodes and three wires more: the words are those of ComfyUI's own prompt node."""

from __future__ import annotations

import hashlib
import urllib.parse
import urllib.request
from typing import Any

from PIL import Image

from .editor import Editor
from .panels import RENDERERS, chips, legend, pressed

MASKS = "GOCA_MaskFromTokens"
TEXT = "a red circle and a blue square on grass"
# Loader, two prompts, latent, sampler, decoder, Save Image.
BUILD = """(text) => {
  const { graph } = window.app;
  const add = (type, pos, values = {}) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = pos;
    graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value;
    return node;
  };
  const loader = add("GOCA_DemoModel", [0, 0]);
  const positive = add("CLIPTextEncode", [360, 0], { text });
  const negative = add("CLIPTextEncode", [360, 260], { text: "" });
  const latent = add("EmptyLatentImage", [360, 520], { width: 64, height: 64 });
  const sampler = add("KSampler", [800, 0], { seed: 5, steps: 6, cfg: 4, control_after_generate: "fixed" });
  const decode = add("VAEDecode", [1160, 0]);
  const save = add("SaveImage", [1160, 160], { filename_prefix: "plain" });
  for (const prompt of [positive, negative]) loader.connect(1, prompt, "clip");
  loader.connect(0, sampler, "model");
  positive.connect(0, sampler, "positive");
  negative.connect(0, sampler, "negative");
  latent.connect(0, sampler, "latent_image");
  sampler.connect(0, decode, "samples");
  loader.connect(2, decode, "vae");
  decode.connect(0, save, "images");
}"""
# Two nodes and the three wires.
ADD = """() => {
  const { graph } = window.app;
  const [loader, sampler] = ["GOCA_DemoModel", "KSampler"].map((type) => graph.nodes.find((node) => node.type === type));
  const [record, masks] = [["GOCA_RecordAttention", [800, 420]], ["GOCA_MaskFromTokens", [1600, 0]]].map(([type, pos]) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = pos;
    return graph.add(node) ?? node;
  });
  loader.connect(0, record, "model");
  record.connect(0, sampler, "model");
  record.connect(1, masks, "source");
  sampler.connect(0, masks, "latent");
}"""

# Type into the positive prompt.
TYPE = """(text) => {
  const [box] = window.app.graph.nodes.find((one) => one.type === "CLIPTextEncode" && one.widgets[0].value).widgets;
  box.value = text;
  box.callback?.(text);
}"""


def image(editor: Editor, outputs: dict[str, dict[str, Any]]) -> str:
    """The pixels of the saved image, which is what the file holds besides the graph."""
    (shown,) = (out["images"] for out in outputs.values() if out.get("images") and "goca_view" not in out)
    query = urllib.parse.urlencode({key: shown[0][key] for key in ("filename", "subfolder", "type")})
    with urllib.request.urlopen(f"{editor.server.url}/view?{query}", timeout=60) as answer, Image.open(answer) as found:
        return hashlib.sha256(found.convert("RGB").tobytes()).hexdigest()


@RENDERERS
def test_two_nodes_and_three_wires(editor: Editor) -> None:
    editor.load({"version": 0.4, "nodes": [], "links": [], "groups": [], "last_node_id": 0, "last_link_id": 0})
    editor.page.evaluate(BUILD, TEXT)
    editor.settle()
    before = image(editor, editor.run())

    editor.page.evaluate(ADD)
    editor.settle()
    # The words of the prompt are there before a run, and follow its text.
    panel = editor.look_at(MASKS)
    assert list(chips(panel))[:3] == ["a#1", "red", "circle"]
    editor.set_value(MASKS, "phrases", "dog")
    assert panel.query_selector(".goca-warning")
    editor.page.evaluate(TYPE, f"{TEXT} with a dog")
    editor.settle()
    assert "dog" in chips(panel) and pressed(panel) == ["dog"] and not panel.query_selector(".goca-warning")

    editor.page.evaluate(TYPE, TEXT)
    editor.set_value(MASKS, "phrases", "red circle\nblue square")
    outputs = editor.run()
    assert image(editor, outputs) == before, "recording does not change the image"
    (table,) = (out["goca_masks"][0] for out in outputs.values() if "goca_masks" in out)
    assert table["phrases"] == ["red circle", "blue square"] and 0 < table["area"][0][0] < 1
    panel = editor.look_at(MASKS)
    assert "red circle" in legend(panel)[0]
    assert editor.errors == []
