"""Small data in the folder layouts of the six data sets, made by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

KEYS = {
    "voc": ("2007_000033", "2011_003276", "2008_000016"),
    "context": ("2008_000002", "2010_006086", "2009_000015"),
    "coco-object": ("000000000139", "000000000285", "000000581781"),
    "coco-stuff": ("000000000139", "000000000285", "000000581781"),
    "cityscapes": (
        "frankfurt_000000_000294_leftImg8bit",
        "lindau_000001_000019_leftImg8bit",
        "munster_000010_000019_leftImg8bit",
    ),
    "ade20k": ("ADE_val_00000001", "ADE_val_00000002", "ADE_val_00002000"),
}
"""Names as the authors give them, in an order that is not the alphabet's for those with a list."""


def smooth_image(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """A smooth image [H, W, 3], which survives a JPEG file."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    return np.stack((40 + 3 * rows, 90 + 2 * columns, np.full_like(rows, 60 + 10 * seed)), -1).astype(np.uint8)


class Layout:
    """A data set being written. `add` takes label values as the authors write them; 0 is "no segment" to COCO-Object."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.keys: list[str] = []
        self._notes: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories()}

    def add(self, key: str, values: NDArray[Any]) -> None:
        self.keys.append(key)
        shown = Image.fromarray(smooth_image(values.shape, len(self.keys)))
        shown.save(_made(self.image(key)), quality=95)
        label = _made(self.label(key))
        if self.name == "context":
            savemat(label, {"LabelMap": values.astype(np.uint16)})
        elif self.name == "coco-object":
            self._panoptic(key, values).save(label)
        else:
            image = Image.fromarray(values.astype(np.uint8))
            if self.name == "voc":
                image.putpalette(bytes(range(256)) * 3)
            image.save(label)
        self._lists()

    def image(self, key: str) -> Path:
        inside = {
            "voc": f"VOCdevkit/VOC2012/JPEGImages/{key}.jpg",
            "context": f"VOCdevkit/VOC2010/JPEGImages/{key}.jpg",
            "coco-object": f"val2017/{key}.jpg",
            "coco-stuff": f"images/val2017/{key}.jpg",
            "cityscapes": f"leftImg8bit/val/{key.split('_')[0]}/{key}.png",
            "ade20k": f"ADEChallengeData2016/images/validation/{key}.jpg",
        }
        return self.root / inside[self.name]

    def label(self, key: str) -> Path:
        inside = {
            "voc": f"VOCdevkit/VOC2012/SegmentationClass/{key}.png",
            "context": f"trainval/{key}.mat",
            "coco-object": f"annotations/panoptic_val2017/{key}.png",
            "coco-stuff": f"annotations/val2017/{key}.png",
            "cityscapes": f"gtFine/val/{key.split('_')[0]}/{key.replace('leftImg8bit', 'gtFine_labelIds')}.png",
            "ade20k": f"ADEChallengeData2016/annotations/validation/{key}.png",
        }
        return self.root / inside[self.name]

    def _lists(self) -> None:
        lists = {
            "voc": ("VOC2012/ImageSets/Segmentation/train.txt", "VOC2012/ImageSets/Segmentation/val.txt"),
            "context": ("VOC2010/ImageSets/Segmentation/train.txt", "VOC2010/ImageSets/Main/val.txt"),
        }
        for path in lists.get(self.name, ()):
            _made(self.root / "VOCdevkit" / path).write_text("\n".join(self.keys) + "\n")
        if self.name == "coco-object":
            (self.root / "annotations/panoptic_val2017.json").write_text(json.dumps(self._notes))

    def _panoptic(self, key: str, values: NDArray[Any]) -> Image.Image:
        """Each category of `values` becomes a segment with a number of its own above 65535."""
        number = int(key)
        self._notes["images"].append({"id": number, "file_name": f"{key}.jpg"})
        numbers = np.zeros(values.shape, np.int64)
        infos = []
        for category in np.unique(values[values > 0]).tolist():
            segment = 70_000 + 311 * category + 7 * len(self.keys)
            numbers[values == category] = segment
            infos.append({"id": segment, "category_id": category, "iscrowd": 0})
        self._notes["annotations"].append({"image_id": number, "file_name": f"{key}.png", "segments_info": infos})
        channels = np.stack((numbers % 256, numbers // 256 % 256, numbers // 65536), -1)
        return Image.fromarray(channels.astype(np.uint8))


def _categories() -> list[dict[str, Any]]:
    return [{"id": number, "isthing": int(number < 92), "name": str(number)} for number in range(1, 201)]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
