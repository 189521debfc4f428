"""Cityscapes and ADE20K."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .base import IGNORE, Item
from .classes import ade20k, cityscapes
from .files import UNKNOWN, FileDataset, folder, list_images


class Cityscapes(FileDataset):
    """Cityscapes: 19 classes. All other labels are void, or background under the reference's protocol."""

    name = "cityscapes"
    layout = "leftImg8bit/val/*/*_leftImg8bit.png and gtFine/val/*/*_gtFine_labelIds.png"
    default_split = reference_split = "val"

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        images = folder(root, self.name, self.layout, f"leftImg8bit/{self.split}")
        labels = folder(root, self.name, self.layout, f"gtFine/{self.split}")
        self.classes = cityscapes.CLASSES
        self.scored = tuple(range(0 if reference else 1, len(self.classes)))
        ending = "_leftImg8bit"
        self.items = tuple(
            Item(path.stem, path, labels / path.parent.name / f"{path.stem.removesuffix(ending)}_gtFine_labelIds.png")
            for path in list_images(images, f"*/*{ending}.png")
        )
        void = 0 if reference else IGNORE
        self.table = np.full(cityscapes.UNNUMBERED + 1, UNKNOWN, np.int64)
        self.table[: cityscapes.LAST_VALUE + 1] = void
        self.table[cityscapes.UNNUMBERED] = void
        self.table[list(cityscapes.VALUES)] = np.arange(1, len(self.classes))


class Ade20k(FileDataset):
    """ADE20K: the 150 classes of the scene parsing benchmark. All else is void, or background under the reference's protocol."""

    name = "ade20k"
    layout = "ADEChallengeData2016/{images,annotations}/validation"
    default_split = reference_split = "validation"
    background_word = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        inside = [f"{home}images/{self.split}" for home in ("ADEChallengeData2016/", "")]
        images = folder(root, self.name, self.layout, *inside)
        labels = images.parent.parent / "annotations" / self.split
        self.classes = ade20k.CLASSES
        self.scored = tuple(range(0 if reference else 1, len(self.classes)))
        self.items = tuple(Item(p.stem, p, labels / f"{p.stem}.png") for p in list_images(images, "*.jpg"))
        self.table = np.arange(ade20k.LAST_VALUE + 1, dtype=np.int64)
        if reference:
            self.table = np.concatenate((self.table, np.zeros(255 - ade20k.LAST_VALUE, np.int64)))
        else:
            self.table[0] = IGNORE
