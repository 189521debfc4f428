"""Pascal VOC 2012 and Pascal Context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from .base import IGNORE, DataError, Item
from .classes import context, voc
from .files import UNKNOWN, FileDataset, folder, names_of

_VOID = 255


class Voc(FileDataset):
    """Pascal VOC 2012 segmentation: 20 classes and the background; outlines and difficult objects are void."""

    name = "voc"
    layout = "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}"
    default_split = "val"
    reference_split = "train"
    background_word = True
    add_missing = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        home = folder(root, self.name, self.layout, *_devkit("VOC2012")).parent
        self.classes = voc.CLASSES
        self.scored = tuple(range(len(self.classes)))
        names = names_of(home / "ImageSets" / "Segmentation" / f"{self.split}.txt")
        self.items = tuple(
            Item(name, home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png")
            for name in (reversed(names) if reference else names)
        )
        self.table = np.full(_VOID + 1, 0 if reference else UNKNOWN, np.int64)
        self.table[: len(self.classes)] = np.arange(len(self.classes))
        self.table[_VOID] = 0 if reference else IGNORE


class Context(FileDataset):
    """Pascal Context on the pictures of VOC 2010: 59 classes; what the labels hold beside them is void.

    Under the reference's protocol that is the background, and its split is the segmentation list of VOC 2010.
    """

    name = "context"
    layout = "VOCdevkit/VOC2010/{JPEGImages,ImageSets} and trainval/*.mat"
    default_split = "val"
    reference_split = "train"
    add_missing = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        home = folder(root, self.name, self.layout, *_devkit("VOC2010")).parent
        labels = folder(root, self.name, self.layout, "trainval", "VOCdevkit/VOC2010/trainval", "VOC2010/trainval")
        self.classes = context.CLASSES
        self.scored = tuple(range(0 if reference else 1, len(self.classes)))
        names = names_of(home / "ImageSets" / ("Segmentation" if reference else "Main") / f"{self.split}.txt")
        items = (Item(name, home / "JPEGImages" / f"{name}.jpg", labels / f"{name}.mat") for name in names)
        # The reference leaves out what has no label; for the split of the authors that would be a missing file.
        self.items = tuple(items) if not reference else tuple(i for i in items if i.label and i.label.is_file())[::-1]
        self.table = np.full(context.LAST_VALUE + 1, 0 if reference else IGNORE, np.int64)
        self.table[list(context.VALUES)] = np.arange(1, len(self.classes))

    def values(self, item: Item) -> NDArray[np.int64]:
        return _label_map(item)


def _devkit(year: str) -> tuple[str, ...]:
    """Where the pictures of a year may lie, from the folder around the development kit to the year's own."""
    return tuple(f"{around}JPEGImages" for around in (f"VOCdevkit/{year}/", f"{year}/", ""))


def _label_map(item: Item) -> NDArray[np.int64]:
    """The matrix `LabelMap` of a MATLAB file."""
    path = item.label
    if path is None or not path.is_file():
        raise DataError(f"The label of {item.key} is missing: {path}.", "missing")
    try:
        values = np.asarray(loadmat(path, variable_names=["LabelMap"])["LabelMap"])
    except Exception as error:  # the reader fails in many ways on a file that is cut off or of another format
        raise DataError(
            f"The label of {item.key} cannot be read: {path} is no MATLAB file with a LabelMap ({error}).", "unreadable"
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise DataError(
            f"The LabelMap of {item.key} is {values.dtype} of shape {values.shape}: expected a matrix of numbers ({path}).",
            "unreadable",
        )
    return values.astype(np.int64)
