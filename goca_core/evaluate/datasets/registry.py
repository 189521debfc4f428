"""The data sets of the evaluation by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import DataError, Dataset
from .coco import CocoObject, CocoStuff
from .pascal import Context, Voc
from .places import Ade20k, Cityscapes
from .scenes import Scenes

DATASETS: Mapping[str, type[Dataset]] = {
    kind.name: kind for kind in (Voc, Context, CocoObject, CocoStuff, Cityscapes, Ade20k, Scenes)
}


def open_dataset(
    name: str, root: str | Path | None = None, *, split: str | None = None, reference: bool = False, **options: Any
) -> Dataset:
    """Open a data set by name.

    name: one of DATASETS. root: the folder that the authors' archives were unpacked in. split: None for the official split,
    or with `reference` for that of the reference implementation. options: options of this data set only, such as count and
    seed of scenes.
    Raises DataError for an unknown name, option or split, missing folders, or a split without images.
    """
    kind = DATASETS.get(name)
    if kind is None:
        raise DataError(f'There is no data set "{name}": choose one of {", ".join(DATASETS)}.')
    known = set(inspect.signature(kind).parameters) - {"root", "split", "reference"}
    for option in options:
        if option not in known:
            which = f"its options are {', '.join(sorted(known))}" if known else "it has no options"
            raise DataError(f'The data set {name} has no option "{option}": {which}.')
    make: Any = kind
    dataset: Dataset = make(None if root is None else Path(root), split, reference=reference, **options)
    if not dataset.items:
        raise DataError(f"The split {dataset.split} of {name} has no images in {root}.", "empty")
    seen: set[str] = set()
    for item in dataset.items:
        if item.key in seen:
            raise DataError(f"The split {dataset.split} of {name} lists {item.key} twice.", "value")
        seen.add(item.key)
    return dataset
