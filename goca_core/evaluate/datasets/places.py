"""Cityscapes and ADE20K."""

from __future__ import annotations

from pathlib import Path

from .base import Item
from .files import FileDataset, list_images, pair_files


class Cityscapes(FileDataset):
    """Cityscapes: 19 classes. All other labels are void, or background under the reference's protocol."""

    name = "cityscapes"
    layout = "leftImg8bit/val/*/*_leftImg8bit.png and gtFine/val/*/*_gtFine_labelIds.png"
    default_split = reference_split = "val"

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        images = self.folder(root, f"leftImg8bit/{self.split}")
        labels = self.folder(root, f"gtFine/{self.split}")
        ending = "_leftImg8bit"
        self.items = tuple(
            Item(path.stem, path, labels / path.parent.name / f"{path.stem.removesuffix(ending)}_gtFine_labelIds.png")
            for path in list_images(images, f"*/*{ending}.png")
        )
        # The values go up to 33; id -1 (licence plate) is 255 in an 8-bit image.
        self.table = self.make_table(self.ids, [*range(34), 255])


class Ade20k(FileDataset):
    """ADE20K: the 150 classes of the scene parsing benchmark. All else is void, or background under the reference's protocol."""

    name = "ade20k"
    layout = "ADEChallengeData2016/{images,annotations}/validation"
    default_split = reference_split = "validation"
    background_word = True

    def __init__(self, root: Path | None, split: str | None = None, *, reference: bool = False) -> None:
        super().__init__(split, reference=reference)
        inside = [f"{home}images/{self.split}" for home in ("ADEChallengeData2016/", "")]
        images = self.folder(root, *inside)
        labels = images.parent.parent / "annotations" / self.split
        self.items = pair_files(images, labels)
        self.table = self.make_table(self.ids, range(256) if reference else [0])
