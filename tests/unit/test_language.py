"""Everything that users read says it in the words of the field: image, video, sampling, ComfyUI. So do the tests."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What not to write, and what to write instead.
BANNED = {
    r"films?": "video",
    r"pictures?": "image",
    r"paint(?:s|ed|ing|ings)?": "generate, sample",
    r"the\s+host": "ComfyUI",
    r"look(?:s|ed\s+at|ing\s+at)?": "evaluate, evaluation",
    r"grounds?": "background",
    r"behind": "background, after",
    r"mirror(?:s|ed|ing)?": "flip",
}
WORDS = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)

# Where such a word is right: (pattern of the file, pattern of the text) and the reason.
ALLOWED = {
    (
        r".*",
        r"goca_core\.picture\b|goca_core/picture\b|\bpicture\.py\b|`picture` \|",
    ): "the name of a module",
    (r".*", r"https?://[^\s)>]+"): "addresses are not ours to choose",
    (r".*", r"\bground[- ]truth\b"): "the term for the labels of a data set",
    (r"goca_core/words/text\.py", r"\bbehind below beneath\b"): "function words that a prompt may hold",
    (r"tests/.*", r"\blook at\b"): "`Editor.look_at`, which brings a node into view",
}


# -- the texts of a file, each with its line -------------------------------------------------------------------------------


def whole(path: Path) -> Iterator[tuple[int, str]]:
    yield 1, path.read_text(encoding="utf-8")


def values(node: Any) -> Iterator[str]:
    """All strings of a JSON value, keys left out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from values(inner)


def of_locale(path: Path) -> Iterator[tuple[int, str]]:
    for text in values(json.loads(path.read_text(encoding="utf-8"))):
        yield 0, text


def captions(node: Any) -> Iterator[str]:
    """Notes, titles, labels and descriptions of a graph and its subgraphs."""
    if isinstance(node, list):
        for inner in node:
            yield from captions(inner)
    elif isinstance(node, dict):
        if node.get("type") in ("Note", "MarkdownNote"):
            yield from values(node.get("widgets_values"))
        named = ["title", "label", "description", *(["name"] if "nodes" in node else [])]
        yield from (node[key] for key in named if isinstance(node.get(key), str))
        for inner in node.values():
            yield from captions(inner)


def of_graph(path: Path) -> Iterator[tuple[int, str]]:
    for text in captions(json.loads(path.read_text(encoding="utf-8"))):
        yield 0, text


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.lineno, inner.value


def is_log(node: ast.AST) -> bool:
    """A call of logging or warnings."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).lower()
    return re.match(r"_?(?:logging|logger|log|warnings)\.", name) is not None or name == "print"


def of_python(path: Path) -> Iterator[tuple[int, str]]:
    """What is raised or logged, and every other string that is a sentence; no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    found = {item for node in ast.walk(tree) if isinstance(node, ast.Raise) or is_log(node) for item in strings(node)}
    # A message may be kept under a name until it is raised or shown.
    found |= {
        (line, text)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in docs
        for line, text in strings(node)
        if len(text.split()) > 2
    }
    yield from sorted(found)


def of_test(path: Path) -> Iterator[tuple[int, str]]:
    """The file's name, and its docstrings, comments and the names of what it defines; no other strings."""
    source = path.read_text(encoding="utf-8")
    yield 0, path.stem.replace("_", " ")
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name.replace("_", " ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


SCRIPT = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`""", re.DOTALL)
INSERTED = re.compile(r"\$\{([^{}]*)\}")


def of_script(path: Path, text: str | None = None, line: int = 1) -> Iterator[tuple[int, str]]:
    """The strings of a script, comments left out; of templates the text and the strings of what is inserted."""
    text = path.read_text(encoding="utf-8") if text is None else text
    for match in SCRIPT.finditer(text):
        at, token = line + text.count("\n", 0, match.start()), match[0]
        if token.startswith("/"):
            continue
        if token.startswith("`"):
            for inserted in INSERTED.findall(token):
                yield from of_script(path, inserted, at)
            token = INSERTED.sub(" ", token)
        yield at, token[1:-1]


SOURCES = (
    ("locales/en/nodeDefs.json", of_locale),
    ("web/docs/*.md", whole),
    ("docs/*.md", whole),
    ("README.md", whole),
    ("CHANGELOG.md", whole),
    ("CONTRIBUTING.md", whole),
    ("demo/README.md", whole),
    ("nodes/**/*.py", of_python),
    ("goca_core/**/*.py", of_python),
    ("workflows/**/*.json", of_graph),
    ("subgraphs/*.json", of_graph),
    ("web/js/*.js", of_script),
    ("tests/**/*.py", of_test),
)
CASES = [
    pytest.param(path, read, id=path.relative_to(ROOT).as_posix())
    for pattern, read in SOURCES
    for path in sorted(ROOT.glob(pattern))
    if path != Path(__file__).resolve()  # it holds the words themselves
]


# -- the check -------------------------------------------------------------------------------------------------------------


def banned(name: str, text: str) -> list[tuple[int, str]]:
    """The banned words of a text, each with the number of line breaks before it and what is around it."""
    spared = [
        span.span()
        for (file, pattern), _ in ALLOWED.items()
        if re.fullmatch(file, name)
        for span in re.finditer(pattern, text, re.IGNORECASE)
    ]
    found = []
    for match in WORDS.finditer(text):
        if not any(start <= match.start() < end for start, end in spared):
            around = text[max(0, match.start() - 30) : match.end() + 30].replace("\n", " ")
            found.append((text.count("\n", 0, match.start()), f"{match[0]!r} in …{around}…"))
    return found


@pytest.mark.parametrize(("path", "read"), CASES)
def test_users_read_the_words_of_the_field(path: Path, read: Any) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = [f"{name}:{line + after}: {what}" for line, text in read(path) for after, what in banned(name, text)]
    assert not found, "\n".join([f"{len(found)} words to replace:", *found])


def test_every_source_is_there() -> None:
    for pattern, _ in SOURCES:
        assert list(ROOT.glob(pattern)), f"{pattern} finds no file"


@pytest.mark.parametrize(
    "text",
    ["a film", "Films", "the picture", "it paints", "painted again", "the\nhost's own", "look at it", "grounds", "behind it",
     "mirrored", "Mirror"],
)  # fmt: skip
def test_a_banned_word_is_found(text: str) -> None:
    assert banned("README.md", text)


@pytest.mark.parametrize(
    "text",
    ["inpaint", "inpainting", "background", "foreground", "outlook", "ground truth", "goca_core.picture", "the hosts",
     "an image of a video", "microfilm", "https://example.org/picture"],
)  # fmt: skip
def test_other_words_are_not(text: str) -> None:
    assert not banned("README.md", text)


def test_texts_are_found_where_users_read_them(tmp_path: Path) -> None:
    module, script, graph = tmp_path / "m.py", tmp_path / "s.js", tmp_path / "g.json"
    module.write_text(
        '"""A film."""\nlogging.warning("film %s", x)\nraise ValueError(f"{x} film")\nTEXT = "a film, told"\nkey = "film"\n'
    )
    assert sorted(line for line, text in of_python(module) if banned("m.py", text)) == [2, 3, 4]
    module.write_text('"""A film."""\ndef test_a_film(film):\n    film = "film"  # a film\n')
    assert [line for line, text in of_test(module) if banned("m.py", text)] == [1, 2, 3]
    module.rename(tmp_path / "test_films.py")
    assert [line for line, text in of_test(tmp_path / "test_films.py") if banned("m.py", text)] == [0, 1, 2, 3]
    script.write_text("// film\nconst film = 'film';\n/* film */ f(`a ${x ? \"film\" : ''} b`);\n`film`;\n")
    assert [line for line, text in of_script(script) if banned("s.js", text)] == [2, 3, 4]
    note = {"type": "MarkdownNote", "widgets_values": ["film"]}
    prompt = {"type": "CLIPTextEncode", "widgets_values": ["film"]}
    inner = {"id": "film", "name": "film", "nodes": [{**note, "title": "film"}]}
    graph.write_text(json.dumps({"nodes": [note, prompt], "definitions": {"subgraphs": [inner]}}))
    assert len([text for _, text in of_graph(graph) if banned("g.json", text)]) == 4
