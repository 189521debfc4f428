"""The data set `scenes`: generated images, so it needs no download and can have any size."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...demo.scenes import SHAPES, Scene, draw
from .base import ClassName, DataError, Dataset, Item

_PREFIX = "scene-"
# Cached, because image, label and caption of a scene are requested one after the other.
_draw = lru_cache(maxsize=8)(draw)


class Scenes(Dataset):
    """Generated images of coloured shapes on a background. The classes are the shapes.

    count: number of scenes. seed: number of the first scene. Scene n is the same in every evaluation and on every machine,
    so 500 scenes from seed 20000 and 500 from seed 20500 have none in common. height, width: image size in pixels.
    Raises DataError for an unknown split, a count below 1, a negative seed, or a side below 16 pixels.
    """

    name = "scenes"
    layout = "nothing: the images are generated"
    default_split = reference_split = "drawn"
    add_missing = True
    sentences = True

    def __init__(
        self,
        root: Path | None = None,
        split: str | None = None,
        *,
        reference: bool = False,
        count: int = 500,
        seed: int = 20_000,
        height: int = 64,
        width: int = 64,
    ) -> None:
        super().__init__(split, reference=reference)
        if self.split != self.default_split:
            raise DataError(f'The data set scenes has no split "{self.split}": use seed to choose the scenes.')
        if count < 1 or seed < 0 or min(height, width) < 16:
            raise DataError(
                f"{count} scenes of {height}x{width} from seed {seed} cannot be made: expected a count of 1 or more, "
                "a seed of 0 or more, and sides of 16 pixels or more.",
                "empty" if count < 1 else "option",
            )
        self.height, self.width = height, width
        self.classes = tuple(ClassName(name, (name,)) for name in ("background", *SHAPES))
        self.scored = tuple(range(len(self.classes)))
        self.items = tuple(Item(f"{_PREFIX}{number}", None, None) for number in range(seed, seed + count))

    def scene(self, item: Item) -> Scene:
        """The scene of an item. Raises DataError for a key that is not a scene."""
        number = item.key.removeprefix(_PREFIX)
        if number == item.key or not number.isdecimal():
            raise DataError(
                f'There is no scene "{item.key}": the name of a scene is {_PREFIX} followed by its number.', "missing"
            )
        return _draw(int(number), self.height, self.width, plain=True)

    def image(self, item: Item) -> NDArray[np.uint8]:
        return self.scene(item).image.copy()

    def label(self, item: Item) -> NDArray[np.int64]:
        scene = self.scene(item)
        ids = np.array([0, *(1 + SHAPES.index(item.shape) for item in scene.objects)], np.int64)
        label: NDArray[np.int64] = ids[scene.labels]
        return label

    def caption(self, item: Item) -> str:
        return self.scene(item).caption
