"""Split a caption that is a list of nouns into entities, in our own way and in that of the reference implementation.

Entities are separated by commas; parentheses hold one object with its parts: "sky, (person, hat), grass".
"""

from __future__ import annotations

from ...words.text import fold_words

Entity = tuple[str, ...]
"""An entity of a caption: its parts, usually one."""


def split_list(caption: str) -> list[Entity]:
    """The entities of a caption in their order, each once, in lower case.

    No word is lost. A group may have one part, be anywhere, lack a comma next to it, or be nested (which changes nothing).
    An unmatched parenthesis is dropped, and so is a full stop at an end. A line break separates like a comma.

    >>> split_list("sky, (person, hat), grass.")
    [('sky',), ('person', 'hat'), ('grass',)]
    """
    text = _balanced(clean(caption.replace("\n", ",")).lower())
    items: list[list[str]] = [[""]]
    depth = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            items.append([""])
        elif char in "(),":
            items[-1].append("")
        else:
            items[-1][-1] += char
    entities = (tuple(dict.fromkeys(part for part in map(_trim, item) if fold_words(part))) for item in items)
    return list(dict.fromkeys(entity for entity in entities if entity))


def clean(text: str) -> str:
    """Reduce spaces to single ones, and drop the characters that have a meaning in prompts or phrases."""
    return " ".join(text.replace("#", " ").replace("\\", " ").split())


def _trim(part: str) -> str:
    """Reduce spaces to single ones, and drop punctuation at both ends."""
    return " ".join(part.split()).strip(" .;:'\"")


def _balanced(text: str) -> str:
    """Replace each unmatched parenthesis by a space."""
    chars, opened = list(text), []
    for place, char in enumerate(text):
        if char == "(":
            opened.append(place)
        elif char == ")" and opened:
            opened.pop()
        elif char == ")":
            chars[place] = " "
    for place in opened:
        chars[place] = " "
    return "".join(chars)


def split_list_as_reference(caption: str) -> list[str]:
    """The entries as the reference splits them, including the parentheses.

    The reference opens a group at an entry with "(" and closes it at the next entry with ")". It misses that a group of one
    entry has already closed. Unless such a group starts the caption or follows a comma without a space, it absorbs the
    entries after it, and all of them are lost when another group opens or the caption ends.
    """
    entries: list[str] = []
    held: list[str] = []
    for piece, whole in _pieces(caption):
        entry = piece.strip()
        if whole:
            entries.append(entry)
        elif "(" in entry:
            held = [entry]
        elif ")" in entry:
            entries.append(", ".join([*(held or [""]), entry]))
            held = []
        elif held:
            held.append(entry)
        else:
            entries.append(entry)
    return list(dict.fromkeys(entries))


def _pieces(caption: str) -> list[tuple[str, bool]]:
    """The pieces between commas, and for each whether it is a complete group that starts right there."""
    pieces: list[tuple[str, bool]] = []
    place = 0
    while place < len(caption):
        close = caption.find(")", place)
        comma = caption.find(",", place)
        if caption[place] == "(" and close >= 0:
            pieces.append((caption[place : close + 1], True))
            place = close + 1
        elif comma == place:
            place += 1
        else:
            end = comma if comma >= 0 else len(caption)
            pieces.append((caption[place:end], False))
            place = end
    return pieces
