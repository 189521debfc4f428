"""What a data set is to the evaluation: a list of pictures, their true class of every pixel, and the words for the classes.

Opening a data set reads lists of names only. Pictures and labels are read one at a time, and whatever is wrong with one is a
`DataError` that names it, so a caller may skip the picture and count it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

IGNORE = -1
"""Label of pixels that do not count."""

ERROR_KINDS = ("missing", "unreadable", "size", "value", "words", "caption", "empty", "option")


class DataError(ValueError):
    """Something is wrong with the data: one sentence that names the file, class or picture.

    kind: one of ERROR_KINDS, to count by. missing: no such file; unreadable: a file that is not what it should be; size: a
    label and a picture that differ in size; value: a label value that is no class; words: a class without words; caption:
    a caption that is missing or in an unknown form; empty: no pictures; option: a call that makes no sense.
    """

    def __init__(self, message: str, kind: str = "option") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class ClassName:
    """A class: its display name, and the lower-case words that may name it; prompts use the first of them."""

    name: str
    synonyms: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.synonyms:
            raise DataError(f'The class "{self.name}" has no words: give it at least one synonym.', "words")
        for word in self.synonyms:
            if not word.strip() or word != " ".join(word.lower().split()) or set(word) & set(",()#"):
                raise DataError(
                    f'The class "{self.name}" has the synonym "{word}": words must be lower case, not empty, and without '
                    "commas, parentheses, number signs and double spaces.",
                    "words",
                )


@dataclass(frozen=True)
class Item:
    """One picture, before anything of it is read. key: its unique and stable name in the data set."""

    key: str
    image: Path | None
    label: Path | None


class Dataset(ABC):
    """Pictures of one split with their labels.

    name: as in `data.DATASETS`. classes: the index is the class id, 0 is the background. scored: the class ids whose mean is
    the data set's mIoU; all of them under the reference's protocol, but without the background where the authors have no
    such class. background_word: prompts end with ", background". add_missing: classes that a caption leaves out are
    appended to it. sentences: captions are sentences, not lists. items: in the order of the split.
    reference: labels, order and merged classes as the reference implementation has them; otherwise as the authors say.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    """The folders below the root, in one line, for help texts and errors."""
    default_split: ClassVar[str]
    reference_split: ClassVar[str]

    classes: tuple[ClassName, ...]
    scored: tuple[int, ...]
    items: tuple[Item, ...]
    background_word: bool = False
    add_missing: bool = False
    sentences: bool = False

    def __init__(self, split: str | None = None, *, reference: bool = False) -> None:
        self.reference = reference
        self.split = split or (self.reference_split if reference else self.default_split)

    @abstractmethod
    def picture(self, item: Item) -> NDArray[np.uint8]:
        """The picture, uint8 [H, W, 3]. Raises DataError if it is missing or unreadable."""

    @abstractmethod
    def label(self, item: Item) -> NDArray[np.int64]:
        """The class of every pixel, int64 [H, W] of ids or IGNORE.

        Raises DataError if it is missing, unreadable, not of the picture's size, or holds a value that is no class.
        """

    def caption(self, item: Item) -> str | None:
        """The caption that comes with the picture, if the data set has captions."""
        return None
