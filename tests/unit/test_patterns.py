"""The judge of the demo model's LoRAs: right on drawn scenes."""

from __future__ import annotations

import numpy as np
import pytest

from goca_core.demo.scenes import COLOURS, draw
from scripts.demo_model.patterns import CLEAN, MARKED, PATTERNS, marked, shares


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_told_from_the_other(pattern: str) -> None:
    other = next(name for name in PATTERNS if name != pattern)
    for seed in range(60):
        scene = draw(seed, plain=True, count=2)
        image = marked(scene.image, scene.objects[:1], pattern)
        for number, item in enumerate(scene.objects, start=1):
            found = shares(image, scene.labels == number, np.asarray(COLOURS[item.colour], np.float32))
            assert found[other] < CLEAN
            assert (found[pattern] >= MARKED) == (number == 1), (seed, item.name, found)
