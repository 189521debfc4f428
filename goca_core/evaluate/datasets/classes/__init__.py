"""The classes of the data sets, with ids and names as their authors define them, and a few synonyms for each."""

from __future__ import annotations

from ..base import ClassName


def table(text: str) -> tuple[ClassName, ...]:
    """Parse a list of classes, one per line in the order of their ids: the words of a class, separated by commas.

    The first word is also the name; write "name = word, word" for another name. The background is added as class 0.
    """
    classes = [ClassName("background", ("background",))]
    for line in text.strip().splitlines():
        name, _, rest = line.rpartition("=")
        words = tuple(word.strip() for word in rest.split(",") if word.strip())
        classes.append(ClassName(name.strip() or next(iter(words), line.strip()), words))
    return tuple(classes)
