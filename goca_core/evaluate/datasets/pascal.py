"""Pascal VOC 2012 and Pascal Context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from .base import DataError, Item
from .files import FileDataset, read_names


class Voc(FileDataset):
    """Pascal VOC 2012 segmentation: 20 classes and the background. Outlines and difficult objects are void."""

    name = "voc"
    layout = "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}"
    default_split = "val"
    reference_split = "train"
    background_word = True
    background_scored = True
    add_missing = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        home = self.folder(root, *_devkit("VOC2012")).parent
        names = read_names(home / "ImageSets" / "Segmentation" / f"{self.split}.txt")
        self.items = tuple(
            Item(name, home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png")
            for name in (reversed(names) if reference else names)
        )
        self.table = self.make_table({0: 0, **self.ids}, range(256) if reference else [255])


class Context(FileDataset):
    """Pascal Context, on the images of VOC 2010: 59 classes. All other labels are void.

    Under the reference's protocol, other labels are background and the split is the segmentation list of VOC 2010.
    """

    name = "context"
    layout = "VOCdevkit/VOC2010/{JPEGImages,ImageSets} and trainval/*.mat"
    default_split = "val"
    reference_split = "train"
    add_missing = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        home = self.folder(root, *_devkit("VOC2010")).parent
        labels = self.folder(root, "trainval", "VOCdevkit/VOC2010/trainval", "VOC2010/trainval")
        names = read_names(home / "ImageSets" / ("Segmentation" if reference else "Main") / f"{self.split}.txt")
        items = (Item(name, home / "JPEGImages" / f"{name}.jpg", labels / f"{name}.mat") for name in names)
        # The reference skips images without a label. In the authors' split, a missing label is an error.
        self.items = tuple(items) if not reference else tuple(i for i in items if i.label and i.label.is_file())[::-1]
        self.table = self.make_table(self.ids, range(460))

    def values(self, item: Item) -> NDArray[np.int64]:
        """Read the matrix `LabelMap` of a MATLAB file."""
        path = item.label
        if path is None or not path.is_file():
            raise DataError(f"The label of {item.key} is missing: {path}.", "missing")
        try:
            values = np.asarray(loadmat(path, variable_names=["LabelMap"])["LabelMap"])
        except Exception as error:  # loadmat raises many kinds of errors for truncated files and other formats
            raise DataError(
                f"The label of {item.key} cannot be read: {path} is not a MATLAB file with a LabelMap ({error}).",
                "unreadable",
            ) from error
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise DataError(
                f"The LabelMap of {item.key} is {values.dtype} of shape {values.shape}: expected a matrix of integers ({path}).",
                "unreadable",
            )
        return values.astype(np.int64)


def _devkit(year: str) -> tuple[str, ...]:
    """Possible image folders of a year, depending on which folder of the development kit is the root."""
    return tuple(f"{around}JPEGImages" for around in (f"VOCdevkit/{year}/", f"{year}/", ""))
