"""What the nodes are called in other languages: nothing is missing, nothing is left over, and ComfyUI gives it out."""

from __future__ import annotations

import re
from types import ModuleType, SimpleNamespace

import pytest

from scripts import make_locales
from scripts.comfy_server import ComfyServer

# What vue-i18n would read as something else than text.
SPECIAL = re.compile(r"[{}@|]")
SCRIPT = {
    "zh": r"[\u4e00-\u9fff]",
    "ja": r"[\u3040-\u30ff\u4e00-\u9fff]",
    "ko": r"[\uac00-\ud7a3]",
    "ru": r"[\u0400-\u04ff]",
}


@pytest.fixture(scope="module")
def texts(host: SimpleNamespace, pack: ModuleType) -> make_locales.Texts:
    classes = host.nodes.NODE_CLASS_MAPPINGS
    return make_locales.english(
        {name: cls.GET_NODE_INFO_V1() for name, cls in classes.items() if name.startswith("GOCA_")}
    )


def test_english_is_what_the_nodes_say(texts: make_locales.Texts) -> None:
    assert make_locales.read("en") == texts, "run scripts/make_locales.py"


@pytest.mark.parametrize("language", make_locales.LANGUAGES)
def test_every_text_is_there_in_other_languages(texts: make_locales.Texts, language: str) -> None:
    found = make_locales.read(language)
    assert make_locales.keys(found) == make_locales.keys(texts)
    for name, node in found.items():
        said = [node["display_name"], node["description"]]
        said += [part["tooltip"] for kind in ("inputs", "outputs") for part in node[kind].values()]
        for text in said:
            assert re.search(SCRIPT[language], text), f"{name} is not in {language}: {text}"


@pytest.mark.parametrize("language", ["en", *make_locales.LANGUAGES])
def test_no_text_is_read_as_markup(language: str) -> None:
    text = make_locales.path_of(language).read_text(encoding="utf-8")
    values = re.findall(r'": "((?:[^"\\]|\\.)*)"', text)
    assert values and not [value for value in values if SPECIAL.search(value)]


def test_comfyui_gives_them_out(server: ComfyServer) -> None:
    given = server.get_json("/i18n")
    for language in ("en", *make_locales.LANGUAGES):
        ours = make_locales.read(language)
        assert {name: given[language]["nodeDefs"][name] for name in ours} == ours
