"""The classes of the data sets: ids and names as their authors number them, and a few other words for each."""

from __future__ import annotations

from ..base import ClassName


def table(text: str) -> tuple[ClassName, ...]:
    """Classes from lines in the order of their ids: the words of a class parted by commas, the first also its name.

    "name = word, word" where the name is another than the first word. The background is put before the first.
    """
    classes = [ClassName("background", ("background",))]
    for line in text.strip().splitlines():
        name, _, rest = line.rpartition("=")
        words = tuple(word.strip() for word in rest.split(",") if word.strip())
        classes.append(ClassName(name.strip() or next(iter(words), line.strip()), words))
    return tuple(classes)
