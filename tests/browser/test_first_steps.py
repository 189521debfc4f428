"""What a new user meets first: the search for a node."""

from __future__ import annotations

from .editor import Editor

SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
MASKS, OVERLAY = "Mask From Tokens (GoCA)", "Overlay (GoCA)"


def found(editor: Editor, words: str) -> list[tuple[str, str]]:
    """The nodes that the search box lists for some words, each with the pack it is from."""
    box = editor.page.get_by_role("combobox")
    box.fill(words)
    editor.settle()
    rows = [row.inner_text().splitlines() for row in editor.page.get_by_test_id("result-item").all()]
    return [(row[0], row[1]) for row in rows]


def test_the_search_finds_the_node_that_is_meant(editor: Editor) -> None:
    editor.page.evaluate(SEARCH)
    editor.page.get_by_role("combobox").wait_for()
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
