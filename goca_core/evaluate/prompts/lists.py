"""Cutting a caption that is a list of nouns into what it names; the reference's own way of doing so is at the end.

A list parts things by commas; parentheses hold one thing with its parts: "sky, (person, hat), grass".
"""

from __future__ import annotations

from ...words.text import fold_words

Entity = tuple[str, ...]
"""One thing that a caption names: its parts, most often one."""


def split_list(caption: str) -> list[Entity]:
    """The things a caption names, in its order, each once, in lower case.

    No word is lost. Groups may hold one part, stand anywhere, touch their neighbours or nest (which changes nothing); of a
    parenthesis without its partner the sign is dropped. A line break parts like a comma; a full stop at an end is dropped.
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
    things = (tuple(dict.fromkeys(part for part in map(_trim, item) if fold_words(part))) for item in items)
    return list(dict.fromkeys(thing for thing in things if thing))


def clean(text: str) -> str:
    """Single spaces, and none of the signs that mean something to a prompt or to a phrase."""
    return " ".join(text.replace("#", " ").replace("\\", " ").split())


_EDGES = " .;:'\""
"""What may stand around a part without being of it."""


def _trim(part: str) -> str:
    return " ".join(part.split()).strip(_EDGES)


def _balanced(text: str) -> str:
    """The text with a space for each parenthesis that has no partner."""
    chars, waiting = list(text), []
    for place, char in enumerate(text):
        if char == "(":
            waiting.append(place)
        elif char == ")":
            if waiting:
                waiting.pop()
            else:
                chars[place] = " "
    for place in waiting:
        chars[place] = " "
    return "".join(chars)


def split_list_as_reference(caption: str) -> list[str]:
    """The entries as the reference cuts them, those in parentheses with them.

    It opens a group at a parenthesis and closes it at the next entry with a closing one, without seeing that a group of one
    entry has closed already. Such a group, unless it starts the caption or follows a comma without a space, swallows what
    comes after it, and is forgotten with all of that when another group opens or the caption ends.
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
    """The text between commas, and whether it is a group that starts right there and was kept whole."""
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
