"""Drawn scenes: simple images whose captions and true masks are known.

They are the training data of the bundled demo models and the test data of their segmentation. Everything is drawn from a
seeded generator, so a seed always gives the same scene.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from . import shapes, things
from .scene import COLOURS, Scene, SceneObject
from .shapes import BACKGROUNDS, SHAPES, corrupt, stencil

__all__ = ["BACKGROUNDS", "COLOURS", "KINDS", "SHAPES", "Kind", "Scene", "SceneObject", "corrupt", "draw", "stencil"]

Kind = Literal["shapes", "things"]
# Each kind with the side of the images that its model generates.
KINDS: dict[Kind, int] = {"shapes": 64, "things": 128}


def draw(
    seed: int | np.random.Generator,
    height: int | None = None,
    width: int | None = None,
    *,
    kind: Kind = "shapes",
    count: int | None = None,
    plain: bool = False,
    texture: float | None = None,
) -> Scene:
    """Draw one scene of one to three objects on a background, by default as large as its model's images.

    ``seed`` is a number or a generator to continue. ``plain`` gives the full caption in its usual order; without it
    some captions leave out a colour or the background, or name the background first, as people do. ``texture``:
    strength of the background's texture, if not the usual one.
    """
    if kind not in KINDS:
        raise ValueError(f'there are no scenes of "{kind}"; the kinds are {", ".join(KINDS)}')
    height, width = height or KINDS[kind], width or height or KINDS[kind]
    module = shapes if kind == "shapes" else things
    more = {} if texture is None else {"texture": texture}
    return module.draw(seed, height, width, count=count, plain=plain, **more)
