"""The data set `scenes`: pictures drawn on the spot, which needs no download and never runs out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...demo.scenes import SHAPES, Scene, draw
from .base import ClassName, DataError, Dataset, Item

_PREFIX = "scene-"


class Scenes(Dataset):
    """Coloured shapes on a ground; the classes are the shapes, the ground is the background.

    count: how many. seed: number of the first one; scene n is the same in every run and on every machine, so runs with
    seeds 20000 and 20500 of 500 scenes share none. height, width: of the pictures, in pixels.
    """

    name = "scenes"
    layout = "nothing: the pictures are drawn"
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
            raise DataError(f'The data set scenes has no split "{self.split}": its seed says which scenes are drawn.')
        if count < 1 or seed < 0 or min(height, width) < 16:
            raise DataError(
                f"{count} scenes of {height}x{width} from seed {seed} cannot be drawn: expected a count of 1 or more, "
                "a seed of 0 or more, and sides of 16 pixels or more.",
                "empty" if count < 1 else "option",
            )
        self.height, self.width = height, width
        self.classes = tuple(ClassName(name, (name,)) for name in ("background", *SHAPES))
        self.scored = tuple(range(len(self.classes)))
        self.items = tuple(Item(f"{_PREFIX}{number}", None, None) for number in range(seed, seed + count))

    def scene(self, item: Item) -> Scene:
        """Everything about the scene."""
        number = item.key.removeprefix(_PREFIX)
        if number == item.key or not number.isdecimal():
            raise DataError(
                f'There is no scene "{item.key}": the name of a scene is {_PREFIX} and its seed.', "missing"
            )
        return _draw(int(number), self.height, self.width)

    def picture(self, item: Item) -> NDArray[np.uint8]:
        return self.scene(item).image.copy()

    def label(self, item: Item) -> NDArray[np.int64]:
        scene = self.scene(item)
        ids = np.array([0, *(1 + SHAPES.index(item.shape) for item in scene.objects)], np.int64)
        label: NDArray[np.int64] = ids[scene.labels]
        return label

    def caption(self, item: Item) -> str:
        return self.scene(item).caption


@lru_cache(maxsize=8)
def _draw(seed: int, height: int, width: int) -> Scene:
    """The picture, the label and the caption of a scene are asked for one after the other."""
    return draw(seed, height, width, plain=True)
