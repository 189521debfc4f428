"""The classes of the data sets, with ids and names as their authors define them, and a few synonyms for each.

Each text file beside this module lists the classes of one data set, in the order of their ids; see `parse`.
"""

from __future__ import annotations

from pathlib import Path

from ..base import ClassName

Classes = tuple[tuple[ClassName, ...], dict[int, int]]
"""The classes, with the background as class 0, and the class id of each value in the labels."""


def read(name: str) -> Classes:
    """Read the classes of the data set with this name."""
    return parse((Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8"))


def parse(text: str) -> Classes:
    """Parse a list of classes, one per line: the words of a class, separated by commas. "# ..." is a comment.

    The first word is also the name; write "name = word, word" for another name. The label values of a class come first, as
    in "1 7-9: word, word"; without them, the class id is the value.
    """
    classes = [ClassName("background", ("background",))]
    ids: dict[int, int] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        values, _, described = line.rpartition(":")
        name, _, listed = described.rpartition("=")
        words = tuple(word.strip() for word in listed.split(",") if word.strip())
        number = len(classes)
        classes.append(ClassName(name.strip() or next(iter(words), described.strip()), words))
        for value in values.split() or [str(number)]:
            first, _, last = value.partition("-")
            ids.update(dict.fromkeys(range(int(first), int(last or first) + 1), number))
    return tuple(classes), ids
