"""COCO-Object (the object classes of COCO's panoptic labels) and COCO-Stuff with 27 coarse classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .base import DataError, Item
from .files import FileDataset, check_size, pair_files, read_colours, read_json


class CocoObject(FileDataset):
    """The 80 object classes of COCO 2017, from the panoptic labels. Stuff is background, unlabelled pixels are void."""

    name = "coco-object"
    layout = "val2017/*.jpg and annotations/{panoptic_val2017.json,panoptic_val2017/*.png}"
    default_split = reference_split = "val2017"
    background_word = True
    background_scored = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        name = f"panoptic_{self.split}"
        images = self.folder(root, self.split, f"images/{self.split}")
        labels = self.folder(root, f"annotations/{name}", name)
        notes = self.folder(root, "annotations") / f"{name}.json"
        try:
            self._segments, files = _segments_of(read_json(notes), self.ids)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"The file {notes} does not hold panoptic annotations ({error!r}).", "unreadable"
            ) from error
        self.items = tuple(Item(key, images / files[key], labels / f"{key}.png") for key in sorted(files))

    def label(self, item: Item) -> NDArray[np.int64]:
        values = read_colours(item)
        check_size(item, values)
        if item.key not in self._segments:
            raise DataError(f"The split {self.split} of {self.name} has no image {item.key}.", "missing")
        ids, classes = self._segments[item.key]
        ids = np.concatenate(([0], ids))
        classes = np.concatenate(([self.void], classes))
        order = np.argsort(ids, kind="stable")
        places = np.searchsorted(ids[order], values).clip(max=len(ids) - 1)
        if (ids[order][places] != values).any():
            odd = values[ids[order][places] != values]
            raise DataError(
                f"The label of {item.key} holds the segment {odd[0]}, which is not in its annotation ({item.label}).",
                "value",
            )
        label: NDArray[np.int64] = classes[order][places]
        return label


Segments = tuple[NDArray[np.int64], NDArray[np.int64]]


def _segments_of(notes: dict, ids: Mapping[int, int]) -> tuple[dict[str, Segments], dict[str, str]]:
    """Map each key to the ids of its segments with their classes, and to the file name of its image."""
    of_category = {category["id"]: 0 for category in notes["categories"]}
    of_category.update(ids)
    images = {image["id"]: image["file_name"] for image in notes["images"]}
    segments: dict[str, Segments] = {}
    files: dict[str, str] = {}
    for note in notes["annotations"]:
        key = PurePosixPath(note["file_name"]).stem
        infos = note["segments_info"]
        segments[key] = (
            np.array([info["id"] for info in infos], np.int64),
            np.array([of_category[info["category_id"]] for info in infos], np.int64),
        )
        files[key] = images[note["image_id"]]
    return segments, files


# Stuff classes of food and of furniture -> the object classes that the reference merges them with.
_MERGED = {15: 3, 16: 4}


class CocoStuff(FileDataset):
    """The 27 coarse classes of COCO-Stuff on COCO 2017. Unlabelled pixels are void.

    Under the reference's protocol, unlabelled pixels are background, and the stuff classes of food and furniture are merged
    with the object classes of food and furniture. one_based: label values are 1 to 182 instead of 0 to 181. The published
    files use 0 to 181; the reference reads them as 1 to 182 and so shifts every label by one.
    """

    name = "coco-stuff"
    layout = "images/val2017/*.jpg and annotations/val2017/*.png (of stuffthingmaps)"
    default_split = reference_split = "val2017"
    add_missing = True

    def __init__(
        self, root: Path | None, split: str | None = None, *, reference: bool = False, one_based: bool = False
    ) -> None:
        super().__init__(split, reference=reference)
        images = self.folder(root, f"images/{self.split}", self.split)
        places = (f"{place}/{self.split}" for place in ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"))
        labels = self.folder(root, *places)
        self.items = pair_files(images, labels)
        merged = _MERGED if reference else {}
        shift = 0 if one_based else -1
        ids = {label + shift: merged.get(number, number) for label, number in self.ids.items()}
        self.table = self.make_table(ids, [0, 255] if one_based else [255])
