"""Panels belong to the nodes on the screen: after undo, in another tab, after a copy, in a subgraph, after a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .editor import Editor
from .panels import chips, legend, pressed

if TYPE_CHECKING:
    from .conftest import Tabs

MASKS = "GOCA_MaskFromTokens"
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
# Panels on the screen that belong to no node of the graph that is shown, and nodes whose panel is not there.
STRANGE = """() => {
  const nodes = window.app.canvas.graph.nodes;
  const ours = nodes.flatMap((node) => (node.widgets ?? []).map((widget) => widget.element)
    .filter((element) => element?.classList.contains("goca-panel")));
  const shown = [...document.querySelectorAll(".goca-panel")].filter((panel) => panel.checkVisibility());
  return [ours.filter((panel) => !panel.isConnected).length, shown.filter((panel) => !ours.includes(panel)).length];
}"""
SELECT = """(nodes) => { window.app.canvas.deselectAll(); window.app.canvas.selectItems(nodes); }"""
# The copy takes the place of the first. A muted node of the type is not meant.
REPLACE = """() => {
  const { graph } = window.app.canvas;
  const [first, copy] = graph.nodes.filter((node) => node.type === "GOCA_MaskFromTokens" && node.mode === 0);
  first.outputs.forEach((output, slot) => [...(output.links ?? [])].forEach((id) => {
    const link = graph.getLink(id);
    copy.connect(slot, graph.getNodeById(link.target_id), link.target_slot);
  }));
  graph.remove(first);
}"""
# The first node of a type that is not muted, in the graph that is shown, which may be a subgraph.
HERE = "(type) => window.app.canvas.graph.nodes.find((node) => node.type === type && node.mode === 0)"
# An undo goes on for a while after the graph has changed, and a redo before its end would be lost.
RESTED = "() => !window.app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState"
ENTER = """() => {
  const { canvas, rootGraph } = window.app;
  canvas.setGraph(canvas.graph === rootGraph ? [...rootGraph.subgraphs.values()].at(-1) : rootGraph);
}"""


def try_out(editor: Editor, word: str) -> None:
    """Click a word and run; the panel on the screen shows the phrases that follow."""
    editor.page.wait_for_function(f"() => !({STRANGE})().some(Boolean)")
    panel = editor.look_at(MASKS)
    before = pressed(panel)
    chips(panel)[word].click()
    editor.settle()
    assert (word in pressed(panel)) != (word in before)
    wanted = editor.value(MASKS, "phrases").splitlines()
    editor.run()
    editor.page.wait_for_function(
        "([list, names]) => names.every((name, i) => list.children[i]?.innerText.startsWith(name))",
        arg=[panel.query_selector(".goca-legend"), wanted],
    )
    assert len(legend(panel)) == len(wanted) + 1, "one more for the background"


def press(editor: Editor, key: str, phrases: str) -> None:
    editor.page.keyboard.press(key)
    editor.page.wait_for_function(
        f"(text) => ({HERE})('{MASKS}')?.widgets[0].value === text && ({RESTED})()",
        arg=phrases,
    )
    editor.settle()


@RENDERERS
def test_panels_stay_those_of_their_nodes(tabs: Tabs, vue: bool) -> None:
    editor = tabs.get(vue=vue)
    command = "(name) => window.app.extensionManager.command.execute(name)"
    start = "red circle\nblue square"
    editor.demo().run()
    panel = editor.look_at(MASKS)
    for word in ("grass", "on"):
        chips(panel)[word].click()
        editor.settle()

    press(editor, "Control+z", f"{start}\ngrass")
    # What is seen is still the last run, and is not said to be that of these phrases.
    panel = editor.look_at(MASKS)
    assert "Run again" in panel.query_selector(".goca-readout").inner_text()
    assert len(legend(panel)) == 3
    press(editor, "Control+z", start)
    assert editor.look_at(MASKS).query_selector(".goca-readout").inner_text() == ""
    try_out(editor, "on")
    press(editor, "Control+z", start)
    press(editor, "Control+y", f"{start} on")
    try_out(editor, "grass")

    # Another tab of the editor with the same nodes, and back.
    editor.page.evaluate(command, "Comfy.DuplicateWorkflow")
    editor.settle()
    try_out(editor, "on")
    editor.page.evaluate(command, "Workspace.PreviousOpenedWorkflow")
    editor.settle()
    assert "on" in pressed(editor.look_at(MASKS))
    try_out(editor, "grass")

    # A copy in place of the first.
    editor.page.evaluate(SELECT, [editor.node(MASKS)])
    editor.page.locator("#graph-canvas").focus()
    editor.page.keyboard.press("Control+c")
    editor.page.keyboard.press("Control+Shift+v")
    editor.page.wait_for_function(
        f"() => window.app.canvas.graph.nodes.filter((n) => n.type === '{MASKS}' && n.mode === 0).length === 2"
    )
    editor.page.evaluate(REPLACE)
    editor.settle()
    try_out(editor, "grass")

    # The whole page again, with the graph that the editor keeps.
    editor.open()
    try_out(editor, "on")

    # In a subgraph, which does not know the prompt before a run; and out of it again.
    editor.page.evaluate(SELECT, [editor.node(MASKS), editor.node("GOCA_Overlay", "Masks over the image")])
    editor.page.evaluate(command, "Comfy.Graph.ConvertToSubgraph")
    editor.page.evaluate(ENTER)
    editor.settle()
    editor.run()
    try_out(editor, "grass")
    editor.page.evaluate(ENTER)
    editor.page.wait_for_function(f"() => !({STRANGE})().some(Boolean)")
