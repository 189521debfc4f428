"""What a new user meets first: the search for a node, the viewer, the language of the editor."""

from __future__ import annotations

import re

from scripts.graphs.files import graph_file

from .editor import Editor
from .panels import RENDERERS, canvas, chips, hover, legend, pressed

SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
MASKS, OVERLAY = "Mask From Tokens (GoCA)", "Overlay (GoCA)"
NODE = "GOCA_MaskFromTokens"
STEPS = "() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
RESTED = "() => !window.app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState"
# The editor opens its graph again in the other language.
LOCALE = """async (name) => {
  await window.app.extensionManager.setting.set("Comfy.Locale", name);
  await new Promise((done) => setTimeout(done, 1000));
}"""
TEXTS = "async () => (await import('/extensions/comfyui-goca/js/texts.js')).TEXTS"


def found(editor: Editor, words: str) -> list[tuple[str, str]]:
    """The nodes that the search box lists for some words, each with the pack it is from."""
    box = editor.page.locator("input[role=combobox]")
    box.fill(words)
    editor.settle()
    rows = [row.inner_text().splitlines() for row in editor.page.get_by_test_id("result-item").all()]
    return [(row[0], row[1]) for row in rows]


def test_the_search_finds_the_node_that_is_meant(editor: Editor) -> None:
    editor.page.evaluate(SEARCH)
    editor.page.locator("input[role=combobox]").wait_for()
    try:
        for words, node in (
            ("mask from text", MASKS),
            ("text to mask", MASKS),
            ("dog mask", MASKS),
            ("heatmap", OVERLAY),
        ):
            assert found(editor, words)[0][0] == node, words
        # ComfyUI ranks by how often a node is used, unless the words are in its name; of all other nodes this is the first.
        for words in ("prompt mask", "clipseg"):
            assert next(name for name, pack in found(editor, words) if pack != "Comfy") == MASKS, words
        for words in ("mask from text", "dog mask", "clipseg", "heatmap"):
            names = [name for name, _ in found(editor, words)]
            assert not [name for name in names if name.startswith(("Save Attention", "Load Attention", "Demo Model"))]
    finally:
        editor.page.keyboard.press("Escape")


@RENDERERS
def test_choices_of_a_viewer_are_no_steps_to_undo(editor: Editor) -> None:
    editor.demo().run()
    panel = editor.look_at(NODE)
    legend(panel)
    before = editor.page.evaluate(STEPS)
    for choice in ("all", "word circle"):
        panel.query_selector("select[aria-label='View']").select_option(choice)
        editor.settle()
    editor.page.mouse.move(5, 400)
    editor.page.mouse.click(5, 400)  # the editor checks for changes then
    editor.settle()
    assert editor.page.evaluate(STEPS) == before
    (saved,) = [node for node in editor.saved()["nodes"] if node["type"] == NODE and not node["mode"]]
    assert saved["properties"]["goca_view"]["show"] == "word circle"

    # A click on the image takes the word that ranks first there, and gives it back. An undo leaves the view as it is.
    editor.set_value(NODE, "phrases", "grass")
    told = hover(editor, panel, 0.62, 0.7)
    word = re.sub(r"^[^:]*: ", "", told).rsplit(" %", told.count("%"))[0].rsplit(" ", 1)[0]
    chosen = pressed(panel)
    for taken in (True, False, True):
        hover(editor, panel, 0.62, 0.7)
        editor.page.mouse.down()
        editor.page.mouse.up()
        editor.settle()
        assert (word in pressed(panel)) == (taken != (word in chosen)), word
    editor.page.keyboard.press("Control+z")
    editor.page.wait_for_function(
        f"() => window.app.graph.nodes.find((n) => n.type === '{NODE}' && !n.mode).widgets[0].value === 'grass' && ({RESTED})()"
    )
    panel = editor.look_at(NODE)
    assert legend(panel) == ["circle, from 0 to 1"]
    assert canvas(panel).is_visible()


def test_panels_speak_the_language_of_the_editor(editor: Editor) -> None:
    texts = editor.page.evaluate(TEXTS)
    names = {key: set(re.findall(r"\{\w+\}", text)) for key, text in texts["en"].items()}
    for language in ("zh", "ja", "ko", "ru"):
        found = {key: set(re.findall(r"\{\w+\}", text)) for key, text in texts[language].items()}
        assert found == names, language
        assert not [key for key in names if texts[language][key] == texts["en"][key]], language
    editor.page.evaluate(LOCALE, "ja")
    try:
        editor.demo().set_value(NODE, "phrases", "dog")
        said = editor.look_at(NODE).inner_text()
        assert texts["ja"]["laterMasks"] in said and "プロンプトにありません：dog" in said
    finally:
        editor.page.evaluate(LOCALE, "en")
        editor.page.wait_for_load_state("networkidle")


@RENDERERS
def test_one_node_makes_masks_of_an_image(editor: Editor) -> None:
    """Words to click, error and viewer are in it; the words are those of its own prompt."""
    editor.load(graph_file("Masks of a photo"))
    kind = "GOCA_MaskFromImage"
    editor.set_value(kind, "phrases", "")
    editor.set_value(kind, "text", "a red car on sand")
    panel = editor.look_at(kind)
    assert list(chips(panel)) == ["a", "red", "car", "on", "sand"]
    for word in ("red", "car"):
        chips(panel)[word].click()
        editor.settle()
    assert editor.value(kind, "phrases") == "red car" and pressed(panel) == ["red", "car"]
    editor.run()
    assert "red car" in legend(panel)[0]
    assert panel.query_selector("input[type=range]").is_visible(), "the masks are not shown over the image"
    editor.set_value(kind, "phrases", "dog")
    assert "dog" in panel.query_selector(".goca-warning").inner_text()
