"""Read images, labels and lists, with errors that name what is wrong."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import classes
from .base import IGNORE, DataError, Dataset, Item

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is truncated or not an image."""

UNKNOWN = -2
"""In the table of a `FileDataset`: a value that must not occur."""


class FileDataset(Dataset):
    """A data set whose images and labels are files. Its classes are those of the file classes/<name>.txt.

    ids: class id of each label value, as in that file. background_scored: whether the authors define the background as a
    class. void: what does not count: IGNORE, or the background under the reference's protocol.
    table: class id or IGNORE of each label value, from 0 on; UNKNOWN for a value that must not occur.
    """

    background_scored: ClassVar[bool] = False
    table: NDArray[np.int64]

    def __init__(self, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        self.classes, self.ids = classes.read(self.name)
        self.scored = tuple(range(0 if reference or self.background_scored else 1, len(self.classes)))
        self.void = 0 if reference else IGNORE

    def folder(self, root: Path | None, *candidates: str) -> Path:
        """Return the first candidate below the root that exists. Raises a DataError that says which folders are expected."""
        if root is None:
            raise DataError(
                f"The data set {self.name} needs its folder: pass the folder that holds {self.layout} as root."
            )
        for candidate in candidates:
            if (root / candidate).is_dir():
                return root / candidate
        raise DataError(f"There is no {' or '.join(candidates)} in {root}: {self.name} needs {self.layout}.", "missing")

    def make_table(self, ids: Mapping[int, int], void: Iterable[int]) -> NDArray[np.int64]:
        """A `table` of the class ids of label values; those of `void` do not count, unless they have a class."""
        merged = dict.fromkeys(void, self.void) | dict(ids)
        table = np.full(max(merged) + 1, UNKNOWN, np.int64)
        table[list(merged)] = list(merged.values())
        return table

    def image(self, item: Item) -> NDArray[np.uint8]:
        """Read an image as RGB. EXIF rotation is not applied, because labels are not rotated either."""
        with _opened(item.image, item, "image") as image:
            return np.asarray(_decoded(image, item, "image").convert("RGB"), np.uint8)

    def label(self, item: Item) -> NDArray[np.int64]:
        values = self.values(item)
        check_size(item, values)
        return translate(item, values, self.table)

    def values(self, item: Item) -> NDArray[np.int64]:
        """The raw values of the label file, int64 [H, W]: palette indices or grey values of one channel."""
        with _opened(item.label, item, "label") as image:
            if image.mode not in ("P", "L", "I;16", "I"):
                raise DataError(
                    f"The label of {item.key} is an image of mode {image.mode}: expected a palette or greyscale image with "
                    f"one value per pixel ({item.label}).",
                    "unreadable",
                )
            return np.asarray(_decoded(image, item, "label"), np.int64)


def read_names(path: Path) -> list[str]:
    """Read the first word of every line of a split's list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        known = sorted(other.stem for other in path.parent.glob("*.txt"))
        hint = f"the lists there are {', '.join(known[:12])}" if known else "the folder holds no lists"
        raise DataError(f"The list of the split is missing: {path}; {hint}.", "missing") from None
    except _BROKEN as error:
        raise DataError(f"The list of the split cannot be read: {path} ({error}).", "unreadable") from error
    return [line.split()[0] for line in lines if line.strip()]


def list_images(directory: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, sorted, without the hidden files that some systems add."""
    return sorted(path for path in directory.glob(pattern) if not path.name.startswith("."))


def pair_files(images: Path, labels: Path) -> tuple[Item, ...]:
    """The JPEG files of a folder, each with the PNG file of the same name in another."""
    return tuple(Item(path.stem, path, labels / f"{path.stem}.png") for path in list_images(images, "*.jpg"))


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"The file {path} is missing.", "missing") from None
    except _BROKEN as error:
        raise DataError(f"The file {path} is not valid JSON ({error}).", "unreadable") from error


def read_colours(item: Item) -> NDArray[np.int64]:
    """Read a label that stores numbers as colours, red + 256 * green + 65536 * blue, int64 [H, W]."""
    with _opened(item.label, item, "label") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DataError(
                f"The label of {item.key} is an image of mode {image.mode}: expected an RGB image ({item.label}).",
                "unreadable",
            )
        channels = np.asarray(_decoded(image, item, "label"), np.int64)
    numbers: NDArray[np.int64] = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return numbers


def translate(item: Item, values: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map label values to class ids by the table of a `FileDataset`. Raises DataError for an unknown value."""
    known = (values >= 0) & (values < len(table))
    ids: NDArray[np.int64] = np.where(known, table[np.where(known, values, 0)], UNKNOWN)
    if (ids == UNKNOWN).any():
        odd = np.unique(values[ids == UNKNOWN])
        raise DataError(
            f"The label of {item.key} holds the value{'s' if len(odd) > 1 else ''} {', '.join(map(str, odd[:8]))}, "
            f"which no class has ({item.label}).",
            "value",
        )
    return ids


def check_size(item: Item, label: NDArray[np.int64]) -> None:
    """Raise DataError unless the label has the size of its image. Reads only the header of the image file."""
    with _opened(item.image, item, "image") as image:
        width, height = image.size
    if label.shape != (height, width):
        raise DataError(
            f"The label of {item.key} has {label.shape[1]}x{label.shape[0]} pixels but its image {width}x{height}: both "
            "must have the same size.",
            "size",
        )


def _opened(path: Path | None, item: Item, what: str) -> Image.Image:
    if path is None:
        raise DataError(f"There is no {what} for {item.key}.", "missing")
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"The {what} of {item.key} is missing: {path}.", "missing") from None
    except _BROKEN as error:
        raise DataError(f"The {what} of {item.key} cannot be read: {path} ({error}).", "unreadable") from error


def _decoded(image: Image.Image, item: Item, what: str) -> Image.Image:
    try:
        image.load()
    except _BROKEN as error:
        path = item.image if what == "image" else item.label
        raise DataError(f"The {what} of {item.key} is damaged: {path} ({error}).", "unreadable") from error
    return image
