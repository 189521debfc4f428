"""Mask From Tokens is small enough to be read at once, and most of it is the viewer."""

from __future__ import annotations

from typing import Any

from .editor import PANEL, Editor
from .panels import RENDERERS, legend

MASKS = "GOCA_MaskFromTokens"
ADVANCED = ("background_rule", "smooth", "largest_component", "width", "height", "remove_small", "fill_holes")
NEW = """() => {
  const node = window.LiteGraph.createNode("GOCA_MaskFromTokens");
  node.title = "New";
  window.app.graph.add(node);
  return node.size[1];
}"""
# The names of inputs that can be read on a node: as text on the canvas, or in its element.
READ = """async (node) => {
  const { canvas } = window.app;
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  if (element) return element.innerText.split("\\n");
  const [texts, draw] = [[], CanvasRenderingContext2D.prototype.fillText];
  CanvasRenderingContext2D.prototype.fillText = function (text, ...at) { texts.push(text); return draw.call(this, text, ...at); };
  canvas.draw(true, true);
  CanvasRenderingContext2D.prototype.fillText = draw;
  return texts;
}"""
SIDE = """(open) => {
  const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
  stores.get("rightSidePanel").isOpen = open;
}"""


def sides(view: Any) -> tuple[float, float]:
    box = view.bounding_box()
    return box["width"], box["height"]


@RENDERERS
def test_the_mask_node_is_mostly_its_viewer(editor: Editor) -> None:
    editor.demo().run()
    assert editor.page.evaluate(NEW) <= 670
    node = editor.centre(MASKS, "New")
    read = node.evaluate(READ)
    assert {"phrases", "background", "mode", "theta"} <= set(read)
    view = node.evaluate_handle(PANEL).as_element().query_selector(".goca-view")
    assert view and view.bounding_box()["height"] >= 250
    page = editor.page
    page.evaluate("(node) => window.app.graph.remove(node)", node)

    # Advanced inputs are folded until somebody asks for them; their values are sent all the same.
    node = editor.centre(MASKS)
    assert not set(ADVANCED) & set(node.evaluate(READ))
    (sent,) = [entry["inputs"] for entry in editor.prompt().values() if entry["class_type"] == MASKS]
    assert sent.keys() >= set(ADVANCED)
    panel = editor.look_at(MASKS)
    if not editor.vue:
        panel.query_selector(".goca-more").click()
        editor.settle()
        assert set(ADVANCED) <= set(node.evaluate(READ))
        panel.query_selector(".goca-more").click()
        editor.settle()
        assert not set(ADVANCED) & set(node.evaluate(READ))

    # The side panel shows the inputs too, and leaves the viewer as it is.
    legend(panel)
    view = panel.query_selector(".goca-view")
    before = sides(view)
    page.evaluate("(node) => window.app.canvas.selectItems([node])", node)
    page.evaluate(SIDE, True)
    try:
        page.get_by_text("goca_phrases").first.scroll_into_view_if_needed()
        editor.settle()
        assert sides(view) == before
    finally:
        page.evaluate(SIDE, False)
        page.evaluate("() => window.app.canvas.deselectAll()")
