"""Choosing words by clicking: the text widget stays the truth, and what is clicked becomes a mask."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from goca_core.picture import sheets as view
from goca_core.picture.colours import colour_of
from goca_core.words.build import Token, build
from goca_core.words.match import PhraseError
from goca_core.words.text import STOP_WORDS, split_words
from goca_core.words.word_map import WordMap
from scripts.comfy_server import ComfyServer
from tests.shapes import saved_with_shapes

from .editor import DEMO, Editor
from .panels import RENDERERS, chips, legend, pressed

if TYPE_CHECKING:
    from playwright.sync_api import ElementHandle

    from .conftest import Tabs

PROMPT, MASKS, OVERLAY = "GOCA_EncodePrompt", "GOCA_MaskFromTokens", "GOCA_Overlay"
PASS = "GOCA_RegionalPass"
WORDS_JS = "(name) => import('/extensions/comfyui-goca/js/words.js').then((words) => { window.words = words; })"
EVIL = "<img src=x onerror=window.hacked=1>"


# -- clicking ----------------------------------------------------------------------------------------------------------


@RENDERERS
def test_a_clicked_word_becomes_a_mask(editor: Editor) -> None:
    editor.demo()
    panel = editor.look_at(MASKS)
    before = chips(panel)
    assert list(before) == ["a#1", "red", "circle", "and", "a#2", "blue", "square", "on", "grass"]
    assert pressed(panel) == ["red", "circle", "blue", "square"]
    assert "token numbers appear after a run" in before["grass"].get_attribute("title")

    before["grass"].click()
    editor.settle()
    assert editor.value(MASKS, "phrases") == "red circle\nblue square\ngrass"
    assert pressed(panel) == ["red", "circle", "blue", "square", "grass"]
    colour = before["grass"].evaluate("(chip) => chip.style.getPropertyValue('--goca-colour')")
    assert colour == f"rgb({' '.join(map(str, colour_of(2)))})"

    outputs = editor.run()
    (table,) = next(shown["goca_masks"] for shown in outputs.values() if "goca_masks" in shown)
    assert table["phrases"] == ["red circle", "blue square", "grass"]
    assert [entry.rsplit(" ", 2)[0] for entry in legend(panel)] == ["red circle", "blue square", "grass", "background"]
    assert "goca-guess" not in chips(panel)["grass"].get_attribute("class")
    assert chips(panel)["grass"].get_attribute("aria-label") == "grass: token 9, in the phrase grass"

    # The same words on the prompt; there too they change the phrases.
    prompt = editor.look_at(PROMPT, "Prompt")
    assert pressed(prompt) == ["red", "circle", "blue", "square", "grass"]
    chips(prompt)["grass"].click()
    chips(prompt)["red"].click()
    chips(prompt)["on"].click(modifiers=["Shift"])
    editor.settle()
    assert editor.value(MASKS, "phrases") == "circle\nblue square on"
    assert pressed(prompt) == ["circle", "blue", "square", "on"]

    # Words typed by hand show as well.
    editor.set_value(MASKS, "phrases", "blue, grass")
    assert pressed(prompt) == ["blue", "grass"]
    editor.set_value(PROMPT, "text", "", "Prompt")
    assert prompt.inner_text() == "No words."


@RENDERERS
def test_words_beside_each_other_are_one_phrase(editor: Editor) -> None:
    """Clicked one after the other, or dragged over; a second time takes them away."""
    editor.demo().set_value(MASKS, "phrases", "")
    panel = editor.look_at(*((PROMPT, "Prompt") if editor.vue else (MASKS, "")))
    for word, modifier, wanted in (
        ("red", [], "red"),
        ("circle", [], "red circle"),
        ("square", [], "red circle\nsquare"),
        ("blue", [], "red circle\nblue square"),
        ("grass", [], "red circle\nblue square\ngrass"),
        ("on", ["Alt"], "red circle\nblue square\ngrass\non"),
        ("on", [], "red circle\nblue square\ngrass"),
        ("grass", [], "red circle\nblue square"),
    ):
        chips(panel)[word].click(modifiers=modifier)
        editor.settle()
        assert editor.value(MASKS, "phrases") == wanted, word
    for start, end, wanted in (
        ("red", "circle", "blue square"),
        ("red", "circle", "blue square\nred circle"),
        ("grass", "square", "square on grass\nblue\nred circle"),
        ("grass", "square", "blue\nred circle"),
        ("red", "square", "red circle and a blue square"),
        ("square", "red", ""),
    ):
        drag(editor, *(chips(panel)[word] for word in (start, end)))
        assert editor.value(MASKS, "phrases") == wanted, (start, end)
        assert not panel.query_selector(".goca-over")


def drag(editor: Editor, start: ElementHandle, end: ElementHandle) -> None:
    boxes = [chip.bounding_box() for chip in (start, end)]
    places = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box]
    editor.page.mouse.move(*places[0])
    editor.page.mouse.down()
    editor.page.mouse.move(*places[1], steps=4)
    editor.page.mouse.up()
    editor.settle()


def test_the_words_of_a_regional_pass_are_those_of_its_sampler(editor: Editor) -> None:
    editor.load(saved_with_shapes("Regional prompts in one pass"))
    panel = editor.look_at(PASS)
    assert list(chips(panel)) == ["a#1", "red", "circle", "and", "a#2", "blue", "square", "on", "grass"]
    assert pressed(panel) == ["red", "circle", "blue", "square"]
    chips(panel)["grass"].click()
    editor.settle()
    assert editor.value(PASS, "phrases") == "red circle\nblue square\ngrass"
    chips(editor.look_at(PROMPT, "Prompt"))["blue"].click()
    editor.settle()
    assert editor.value(PASS, "phrases") == "red circle\nsquare\ngrass"
    outputs = editor.run()
    (masks,) = [view["masks"] for out in outputs.values() for view in out.get("goca_view", []) if "masks" in view]
    assert masks["names"] == ["red circle", "square", "grass"]
    panel = editor.look_at(PASS)
    assert chips(panel)["grass"].get_attribute("aria-label") == "grass: token 9, in the phrase grass"
    # Without a sampler nobody knows whose words these are.
    editor.node(PASS).evaluate("(node) => node.disconnectOutput(0)")
    editor.settle()
    assert not chips(panel) and "sampler" in panel.inner_text()


def test_words_by_keyboard_and_what_a_reader_hears(editor: Editor) -> None:
    editor.demo()
    panel = editor.look_at(MASKS)
    toolbar = panel.query_selector("[role=toolbar]")
    assert toolbar and toolbar.get_attribute("aria-label") == "Words of the prompt"
    first = panel.query_selector(".goca-chip[tabindex='0']")
    assert first and len(panel.query_selector_all(".goca-chip[tabindex='0']")) == 1, "one stop for the tab key"
    first.focus()
    for _ in range(2):
        editor.page.keyboard.press("ArrowRight")
    editor.page.keyboard.press("Space")
    editor.settle()
    assert editor.value(MASKS, "phrases") == "red\nblue square"
    editor.page.keyboard.press("End")
    editor.page.keyboard.press("Shift+Enter")
    editor.settle()
    assert editor.value(MASKS, "phrases") == "red\nblue square, grass"
    # The key that deletes nodes is not meant for the node while a word has the focus.
    editor.page.keyboard.press("Delete")
    assert editor.node(MASKS).evaluate("(node) => Boolean(node)")
    editor.page.keyboard.press("Control+z")
    editor.page.wait_for_function(
        "() => window.app.graph.nodes.find((n) => n.type === 'GOCA_MaskFromTokens' && !n.mode).widgets[0].value === 'red\\nblue square'"
    )


def test_repeated_words_and_pieces(editor: Editor) -> None:
    editor.demo()
    editor.node(PROMPT, "Prompt").evaluate(
        "(node) => { node.widgets[0].value = 'a (red:1.2) cat, a cat and an axolotl on \\\\(grass\\\\)'; }"
    )
    editor.set_value(MASKS, "phrases", "cat#2")
    panel = editor.look_at(MASKS)
    guessed = list(chips(panel))
    assert guessed == ["a#1", "red", "cat#1", "a#2", "cat#2", "and", "an", "axolotl", "on", "grass"]
    assert pressed(panel) == ["cat#2"]
    editor.run()
    assert list(chips(panel)) == guessed
    title = chips(panel)["axolotl"].get_attribute("title")
    assert title.startswith("axolotl: tokens ") and "·" in title, "sub-word pieces are told"
    chips(panel)["cat#1"].click()
    editor.settle()
    assert editor.value(MASKS, "phrases") == "cat#2\ncat#1"


def kept(graph: dict[str, Any]) -> dict[int, Any]:
    """What a saved graph says of its nodes, but for how large each renderer draws them."""
    return {n["id"]: (n["type"], n.get("title"), n["widgets_values"], n["properties"]) for n in graph["nodes"]}


def test_a_graph_is_saved_with_everything_and_nothing_else(editor: Editor, tabs: Tabs) -> None:
    saved = editor.demo().saved()
    for node in DEMO["nodes"]:
        (ours,) = [other for other in saved["nodes"] if other["id"] == node["id"]]
        assert ours["widgets_values"] == node["widgets_values"], node["type"]
    chips(editor.look_at(MASKS))["grass"].click()
    editor.run()
    panel = editor.look_at(MASKS)
    panel.query_selector("select[aria-label='View']").select_option("word circle")
    panel.query_selector("select[aria-label='Colour map']").select_option("cividis")
    editor.settle()
    saved = editor.saved()
    assert editor.load(saved).saved()["nodes"] == saved["nodes"]
    again = tabs.get(vue=True).load(saved)
    assert kept(again.saved()) == kept(saved)
    assert again.value(MASKS, "phrases") == "red circle\nblue square\ngrass"
    again.run()
    panel = again.look_at(MASKS)
    assert legend(panel) == ["circle, from 0 to 1"]
    assert panel.query_selector("select[aria-label='Colour map']").input_value() == "cividis"


def test_two_tabs_do_not_mix(tabs: Tabs) -> None:
    wanted = {"circle\nsquare": tabs.get(vue=False), "grass": tabs.get(vue=True)}
    for vue, phrases in enumerate(wanted):
        tabs.get(vue=bool(vue)).demo().set_value(MASKS, "phrases", phrases)
    # Both are queued before either is read.
    first, second = wanted.values()
    second.page.evaluate("() => window.app.queuePrompt(0)")
    tabs.get(vue=False)
    first.run()
    tabs.get(vue=True)
    second.run()
    for vue, phrases in enumerate(wanted):
        panel = tabs.get(vue=bool(vue)).look_at(MASKS)
        names = [entry.rsplit(" ", 2)[0].partition(" (")[0] for entry in legend(panel)]
        assert names == [*phrases.splitlines(), "background"]


@RENDERERS
def test_markup_in_a_prompt_stays_text(editor: Editor) -> None:
    editor.demo()
    editor.node(PROMPT, "Prompt").evaluate("(node, text) => { node.widgets[0].value = text; }", f"a {EVIL} on grass")
    editor.set_value(MASKS, "phrases", f"{EVIL}\ngrass")
    editor.run()
    for kind, title in (
        (PROMPT, "Prompt"),
        (MASKS, ""),
        (OVERLAY, "Masks over the image"),
        (OVERLAY, "Heat map of every word"),
    ):
        panel = editor.look_at(kind, title)
        assert not panel.query_selector_all("img, script, [onerror]")
        for select in panel.query_selector_all("select option"):
            assert select.evaluate("(option) => option.children.length") == 0
    assert legend(editor.look_at(MASKS))[0].startswith(EVIL)
    assert "onerror" in chips(editor.look_at(PROMPT, "Prompt"))
    assert editor.page.evaluate("() => window.hacked") is None


def test_markup_in_a_file_name_stays_text(editor: Editor) -> None:
    editor.demo()
    editor.set_value("GOCA_SaveAttention", "filename_prefix", EVIL)
    editor.run()
    said, parts = editor.node("GOCA_SaveAttention").evaluate(
        """(node) => {
             const { element } = node.widgets.find((widget) => widget.name === "goca_text");
             const text = element.querySelector("pre");
             return [text.textContent, text.children.length];
           }"""
    )
    assert said.startswith(f"output/{EVIL}_") and parts == 0
    assert editor.page.evaluate("() => window.hacked") is None


# -- the same rules as in the method -------------------------------------------------------------------------------------

PROMPTS = [
    "a red cat and a blue cat on a wooden-table",
    "room #2 and room #3, a man's book",
    "一只猫 und größe STRASSE, straße",
    "cat, cat cat; the cat's 猫 😀 smile",
    "ca\u00adt, a red\ufe0f \u200dcat©\ufe0fdog ❤\ufe0f smile, cat\u200d's \u2060 table",
]
PHRASES = [
    "cat", "red cat", "cat#2", "CAT #1", "blue cat#1", "cat#9", "table", "wooden table", "wooden-table", "room #2", "room#2",
    "man's", "man", "'s book", "猫", "größe", "Straße", "strasse", "cat cat", "😀", "😀 smile", "dog", ",", "cats",
    "(red cat:1.2)", "(cat:1.1)#2", "(cat#2:nan)", "((blue:1.3) cat", "cat dog", "❤", "ca\u00adt",
]  # fmt: skip


def words_of(text: str) -> WordMap:
    """One token for each word or run of punctuation."""
    tokens = [Token(number, number, text[a:b], "word", a, b) for number, (a, b) in enumerate(split_words(text))]
    return build(text, text, "clip-l", 77, tokens)


def positions(words: WordMap, phrase: str) -> list[int]:
    try:
        return list(words.find(phrase))
    except PhraseError:
        return []


@pytest.fixture
def page(editor: Editor) -> Any:
    editor.page.evaluate(WORDS_JS, "")
    return editor.page


def test_a_phrase_means_the_same_words_as_in_python(page: Any) -> None:
    for prompt in PROMPTS:
        words = words_of(prompt)
        found = page.evaluate(
            """([words, phrases]) => phrases.map((phrase) =>
                 window.words.meant(words, phrase).filter((i) => words[i].keys.length).flatMap((i) => words[i].tokens))""",
            [view.word_table(words)["words"], PHRASES],
        )
        for phrase, ours in zip(PHRASES, found, strict=True):
            wanted = [p for p in positions(words, phrase) if words.words[p].keys]
            assert sorted(ours) == wanted, (prompt, phrase)


def test_every_click_leaves_phrases_that_mean_what_is_pressed(page: Any) -> None:
    """Words are added and taken out in many orders; Python reads the phrases that result."""
    for prompt, seed in itertools.product(PROMPTS, range(5)):
        words = words_of(prompt)
        steps = page.evaluate(
            """([words, seed]) => {
                 const { including, owners, without } = window.words;
                 const named = words.map((word, i) => i).filter((i) => words[i].keys.length);
                 let state = seed + 1, text = "";
                 const draw = (n) => { state = (state * 48271) % 2147483647; return state % n; };
                 return Array.from({ length: 40 }, () => {
                   const index = named[draw(named.length)];
                   const had = owners(words, text)[index].line >= 0;
                   const to = ["next", "last", "own"][draw(3)];
                   text = had ? without(words, text, index) : including(words, text, index, to);
                   return [index, had, text];
                 });
               }""",
            [view.word_table(words)["words"], seed],
        )
        wanted: set[int] = set()
        for index, had, text in steps:
            assert had == (index in wanted)
            wanted ^= {index}
            parts = [part for line in text.splitlines() for part in line.replace("\\,", "\0").split(",")]
            meant = {p for part in parts for p in words.find(part.replace("\0", ","))}
            assert {p for p in meant if words.words[p].keys} == wanted, (prompt, text)


def test_dragging_over_words_leaves_one_phrase_that_means_them(page: Any) -> None:
    """From any word to any other, whatever the phrases are; the same again takes it away."""
    for prompt, phrases in itertools.product(PROMPTS, ("", "cat", "red cat\nblue, table", "a cat, 猫\ndog")):
        words = words_of(prompt)
        named = [i for i, word in enumerate(words.words) if word.keys]
        once, twice = page.evaluate(
            """([words, text, from, to]) => {
                 const once = window.words.spanning(words, text, from, to);
                 return [once, window.words.spanning(words, once, to, from)];
               }""",
            [view.word_table(words)["words"], phrases, named[1], named[3]],
        )
        lines = [
            {p for part in line.replace("\\,", "\0").split(",") for p in positions(words, part.replace("\0", ","))}
            for line in once.splitlines()
        ]
        span = set(named[1:4])
        assert [line for line in lines if line & span] == [span], (prompt, phrases, once)
        had = {p for part in phrases.replace("\n", ",").split(",") for p in positions(words, part)}
        assert set().union(*lines) == had | span, (prompt, phrases, once)
        rest = {p for part in twice.replace("\n", ",").split(",") for p in positions(words, part)}
        assert rest == had - span, (prompt, phrases, twice)


def test_a_guess_has_the_words_of_the_tokenizer(page: Any) -> None:
    for prompt in PROMPTS:
        words = words_of(prompt)
        guessed = page.evaluate(
            "([text, stop]) => window.words.estimate(text, new Set(stop))", [prompt, sorted(STOP_WORDS)]
        )
        told = view.word_table(words)["words"]
        assert [(w["name"], w["content"]) for w in guessed if w["keys"]] == [
            (w["name"], w["content"]) for w in told if w["keys"]
        ]


def test_the_server_gives_its_scripts_and_nothing_beside_them(server: ComfyServer) -> None:
    assert b"registerExtension" in server.get("/extensions/comfyui-goca/js/goca.js")
    root = "/extensions/comfyui-goca"
    # The editor asks for a help page in its language first.
    for language in ("en", "zh", "pt-BR"):
        assert server.get(f"{root}/docs/{OVERLAY}/{language}.md") == server.get(f"{root}/docs/{OVERLAY}.md")
    out = ("../..", "%2e%2e/%2e%2e", "..%2f..", "%2e%2e%2f%2e%2e", "..%5c..", "js/../../..", "js%00/../../..")
    pages = ("docs/GOCA_None/en.md", "docs/..%2f..%2fREADME/en.md", "docs/GOCA_Overlay/..%2fx.md")
    for path in (
        *(f"{root}/{way}/__init__.py" for way in out),
        *(f"{root}/{page}" for page in pages),
        f"{root}//etc/passwd",
        f"{root}/{'a' * 20_000}.js",
    ):
        with pytest.raises(OSError, match=r"HTTP Error 4\d\d"):
            server.get(path)
