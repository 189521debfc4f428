"""What is wrong is told on the node itself: before a run, when one fails, and when a mask has no pixel."""

from __future__ import annotations

from typing import Any

from .editor import FOLLOW, Editor
from .panels import RENDERERS

MASKS, AGGREGATE = "GOCA_MaskFromTokens", "GOCA_Aggregate"
# What is told on a node, as far as it can be seen there.
TOLD = """(node) => (node.widgets ?? []).flatMap((widget) => [...(widget.element?.querySelectorAll(".goca-said p") ?? [])])
  .filter((line) => line.checkVisibility()).map((line) => line.innerText)"""
# As if the second phrase had been skipped as absent, in what the node got from its last run.
SKIP = """(node) => {
  const output = structuredClone(window.app.nodeOutputs[node.id]);
  const [table] = output.goca_masks;
  Object.assign(table, { absent: [[false, true]], area: table.area.map(([first]) => [first, 0]) });
  node.onExecuted(output);
}"""
WIDGETS = "(node) => [node.widgets.length, Math.round(node.size[1])]"


def told(editor: Editor, kind: str) -> list[str]:
    lines: list[str] = editor.centre(kind).evaluate(TOLD)
    return lines


def fail(editor: Editor) -> dict[str, Any]:
    """Run a graph that cannot succeed; what ComfyUI says of it."""
    editor.page.evaluate(FOLLOW)
    editor.page.keyboard.press("Control+Enter")
    end: dict[str, Any] = editor.page.evaluate("() => window.gocaRun")
    editor.settle()
    assert end["kind"] == "execution_error", end
    return end


@RENDERERS
def test_a_node_says_what_is_wrong(editor: Editor) -> None:
    editor.demo()
    assert told(editor, MASKS) == []
    # Unknown words are told before a run, in both lists.
    editor.set_value(MASKS, "phrases", "red circle\ndog, blue square#3")
    assert told(editor, MASKS) == ["Not in the prompt: dog, blue square#3"]
    editor.set_value(MASKS, "background", "grass, cat")
    assert told(editor, MASKS) == ["Not in the prompt: dog, blue square#3, cat"]
    end = fail(editor)
    assert end["exception_type"] == "goca.PhraseError"
    sentence = end["exception_message"].strip()
    assert sentence.startswith('"dog" is not in the prompt')
    assert told(editor, MASKS)[0] == sentence
    note = editor.look_at(MASKS).query_selector(".goca-readout")
    assert note and "Run again" not in note.inner_text(), "it would fail again"

    editor.set_value(MASKS, "background", "auto")
    editor.set_value(MASKS, "phrases", "red circle\nblue square")
    editor.run()
    assert told(editor, MASKS) == []

    # A phrase whose thing is not in the image.
    editor.node(MASKS).evaluate(SKIP)
    assert told(editor, MASKS) == ["Not found in the image: blue square. For a mask anyway, switch skip_absent off."]

    # A mask without a pixel, until the phrases change.
    editor.set_value(MASKS, "theta", 1)
    editor.run()
    assert told(editor, MASKS) == [
        "No pixel belongs to red circle, blue square. Lower theta, or leave out other phrases."
    ]
    editor.set_value(MASKS, "phrases", "red circle")
    assert told(editor, MASKS) == []

    # A node without a panel gets one for its error, and has none after the next run.
    before = editor.node(AGGREGATE).evaluate(WIDGETS)
    editor.set_value(AGGREGATE, "head_method", "cosine")
    sentence = fail(editor)["exception_message"].strip()
    assert "cosine" in sentence
    assert told(editor, AGGREGATE) == [sentence]
    editor.set_value(AGGREGATE, "head_method", "auto")
    editor.run()
    assert told(editor, AGGREGATE) == []
    assert editor.node(AGGREGATE).evaluate(WIDGETS) == before
