"""The data set interface: a list of images, the true class of every pixel, and the words that name each class.

Opening a data set reads only lists of file names. Images and labels are read one at a time. A problem with one of them
raises a `DataError` that names it, so that a caller can skip the image and report it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

IGNORE = -1
"""Label of pixels that do not count (void)."""


class DataError(ValueError):
    """Something is wrong with the data. The message is one sentence that names the file, class or image.

    kind: by which errors are counted. missing: no such file. unreadable: a damaged file or a wrong
    format. size: label and image differ in size. value: a label value that is not a class. words: a class without words.
    caption: a caption that is missing or has an unknown format. empty: no images. option: an invalid argument.
    """

    def __init__(self, message: str, kind: str = "option") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class ClassName:
    """A class: its display name, and the lower-case words that may name it. Prompts use the first of them."""

    name: str
    synonyms: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.synonyms:
            raise DataError(f'The class "{self.name}" has no words: give it at least one synonym.', "words")
        for word in self.synonyms:
            if not word.strip() or word != " ".join(word.lower().split()) or set(word) & set(",()#"):
                raise DataError(
                    f'The class "{self.name}" has the synonym "{word}": use lower case words without commas, '
                    "parentheses, number signs or double spaces.",
                    "words",
                )


@dataclass(frozen=True)
class Item:
    """The paths of one image and its label. key: its unique and stable name in the data set."""

    key: str
    image: Path | None
    label: Path | None


class Dataset(ABC):
    """The images of one split with their labels.

    name: key in `registry.DATASETS`. classes: the index is the class id, 0 is the background. scored: class ids that the
    data set's mIoU is the mean of: all of them under the reference's protocol; otherwise without the background, unless
    the authors define it as a class. items: the images, in the order of the split.
    background_word: prompts end with ", background". add_missing: classes that a caption leaves out are appended to it.
    sentences: captions are sentences, not lists of nouns.
    reference: labels, order and merged classes follow the reference implementation instead of the data set's authors.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    """The folders expected below the root, in one line, for help texts and errors."""
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
    def image(self, item: Item) -> NDArray[np.uint8]:
        """Read an image, uint8 [H, W, 3]. Raises DataError if it is missing or unreadable."""

    @abstractmethod
    def label(self, item: Item) -> NDArray[np.int64]:
        """Read the class of every pixel, int64 [H, W] of class ids or IGNORE.

        Raises DataError if the label is missing, unreadable, differs from the image in size, or holds an unknown value.
        """

    def caption(self, item: Item) -> str | None:
        """The caption that comes with the image; None if the data set has no captions."""
        return None
