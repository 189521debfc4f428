"""Reading pictures, labels and lists, with errors that name what is wrong."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .base import DataError, Dataset, Item

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is cut off or not a picture at all."""


UNKNOWN = -2
"""In the table of a `FileDataset`: a value that may not occur."""


class FileDataset(Dataset):
    """A data set whose labels are pictures of values.

    table: the class id or IGNORE of each value, from 0 on; UNKNOWN for one that may not occur.
    """

    table: NDArray[np.int64]

    def picture(self, item: Item) -> NDArray[np.uint8]:
        return read_picture(item)

    def label(self, item: Item) -> NDArray[np.int64]:
        values = self.values(item)
        check_size(item, values)
        return translate(item, values, self.table)

    def values(self, item: Item) -> NDArray[np.int64]:
        """What the file of the label holds, int64 [H, W]."""
        return read_indexed(item)


def folder(root: Path | None, dataset: str, layout: str, *candidates: str) -> Path:
    """The first of some folders below the root that exists. Raises DataError that says how the root must be laid out."""
    if root is None:
        raise DataError(f"The data set {dataset} needs its folder: pass the one that holds {layout}.")
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise DataError(f"There is no {' or '.join(candidates)} in {root}: {dataset} needs {layout}.", "missing")


def names_of(path: Path) -> list[str]:
    """The first word of every line of a split's list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        known = sorted(other.stem for other in path.parent.glob("*.txt"))
        hint = f"the lists there are {', '.join(known[:12])}" if known else "the folder holds no lists"
        raise DataError(f"The list of the split is missing: {path}; {hint}.", "missing") from None
    except _BROKEN as error:
        raise DataError(f"The list of the split cannot be read: {path} ({error}).", "unreadable") from error
    return [line.split()[0] for line in lines if line.strip()]


def pictures_in(place: Path, pattern: str) -> list[Path]:
    """The files of a folder, by path, without the hidden ones that some systems leave."""
    return sorted(path for path in place.glob(pattern) if not path.name.startswith("."))


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"The file {path} is missing.", "missing") from None
    except _BROKEN as error:
        raise DataError(f"The file {path} is not valid JSON ({error}).", "unreadable") from error


def read_picture(item: Item) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]; grey pictures become colour. A turning note of the camera is not followed: labels do not either."""
    with _opened(item.image, item, "picture") as image:
        return np.asarray(_decoded(image, item, "picture").convert("RGB"), np.uint8)


def read_indexed(item: Item) -> NDArray[np.int64]:
    """The values of a label with one channel, int64 [H, W]: palette indices, or grey values."""
    with _opened(item.label, item, "label") as image:
        if image.mode not in ("P", "L", "I;16", "I"):
            raise DataError(
                f"The label of {item.key} is a picture of mode {image.mode}: expected one value for each pixel, as a palette "
                f"or in grey ({item.label}).",
                "unreadable",
            )
        return np.asarray(_decoded(image, item, "label"), np.int64)


def read_colours(item: Item) -> NDArray[np.int64]:
    """The numbers that a label writes as colours, red + 256 green + 65536 blue, int64 [H, W]."""
    with _opened(item.label, item, "label") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DataError(
                f"The label of {item.key} is a picture of mode {image.mode}: expected colours ({item.label}).",
                "unreadable",
            )
        channels = np.asarray(_decoded(image, item, "label"), np.int64)
    numbers: NDArray[np.int64] = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return numbers


def translate(item: Item, values: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class ids for label values: see `FileDataset`."""
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
    """Raise unless the label has the size of its picture, of which only the head is read."""
    with _opened(item.image, item, "picture") as image:
        width, height = image.size
    if label.shape != (height, width):
        raise DataError(
            f"The label of {item.key} has {label.shape[1]}x{label.shape[0]} pixels but its picture {width}x{height}: they "
            "must be of one size.",
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
        path = item.image if what == "picture" else item.label
        raise DataError(f"The {what} of {item.key} is broken: {path} ({error}).", "unreadable") from error
    return image
