"""COCO-Object (the object classes of COCO's panoptic labels) and COCO-Stuff with 27 coarse classes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .base import IGNORE, DataError, Dataset, Item
from .classes import coco_object, coco_stuff
from .files import UNKNOWN, FileDataset, check_size, folder, list_images, read_colours, read_image, read_json


class CocoObject(Dataset):
    """The 80 object classes of COCO 2017, from the panoptic labels. Stuff is background, unlabelled pixels are void."""

    name = "coco-object"
    layout = "val2017/*.jpg and annotations/{panoptic_val2017.json,panoptic_val2017/*.png}"
    default_split = reference_split = "val2017"
    background_word = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        name = f"panoptic_{self.split}"
        images = folder(root, self.name, self.layout, self.split, f"images/{self.split}")
        labels = folder(root, self.name, self.layout, f"annotations/{name}", name)
        notes = folder(root, self.name, self.layout, "annotations") / f"{name}.json"
        self.classes = coco_object.CLASSES
        self.scored = tuple(range(len(self.classes)))
        try:
            self._segments, files = _segments_of(read_json(notes))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"The file {notes} does not hold panoptic annotations ({error!r}).", "unreadable"
            ) from error
        self.items = tuple(Item(key, images / files[key], labels / f"{key}.png") for key in sorted(files))

    def image(self, item: Item) -> NDArray[np.uint8]:
        return read_image(item)

    def label(self, item: Item) -> NDArray[np.int64]:
        values = read_colours(item)
        check_size(item, values)
        if item.key not in self._segments:
            raise DataError(f"The split {self.split} of {self.name} has no image {item.key}.", "missing")
        ids, classes = self._segments[item.key]
        ids = np.concatenate(([0], ids))
        classes = np.concatenate(([0 if self.reference else IGNORE], classes))
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


def _segments_of(notes: dict) -> tuple[dict[str, Segments], dict[str, str]]:
    """Map each key to the ids of its segments with their classes, and to the file name of its image."""
    of_category = {category["id"]: 0 for category in notes["categories"]}
    of_category.update({category: number for number, category in enumerate(coco_object.CATEGORIES, start=1)})
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
        images = folder(root, self.name, self.layout, f"images/{self.split}", self.split)
        places = (f"{place}/{self.split}" for place in ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"))
        labels = folder(root, self.name, self.layout, *places)
        self.classes = coco_stuff.CLASSES
        self.scored = tuple(range(0 if reference else 1, len(self.classes)))
        self.items = tuple(Item(p.stem, p, labels / f"{p.stem}.png") for p in list_images(images, "*.jpg"))
        void = 0 if reference else IGNORE
        coarse = np.array(coco_stuff.COARSE, np.int64)
        if reference:
            coarse[coarse == coco_stuff.FOOD_STUFF] = coco_stuff.FOOD
            coarse[coarse == coco_stuff.FURNITURE_STUFF] = coco_stuff.FURNITURE
        self.table = np.full(coco_stuff.UNLABELLED + 1, UNKNOWN, np.int64)
        self.table[coco_stuff.UNLABELLED] = void
        if one_based:
            self.table[0] = void
        self.table[int(one_based) : int(one_based) + len(coarse)] = coarse
