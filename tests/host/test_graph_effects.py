"""The graphs that edit, as they are shipped, do to their image what they say. How often: benchmarks/editing.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from goca_core.demo.scenes import COLOURS
from scripts.comfy_server import ComfyServer

from .test_edit_graphs import saved, weights
from .test_graphs import graph

__all__ = ["weights"]  # a fixture that every test here uses

GRASS = (86, 128, 66)


def of_colour(image: np.ndarray, name: str) -> np.ndarray:
    """The pixels [H, W] that are nearer to a colour of the scenes than to any other or to the grass."""
    known = np.array([*COLOURS.values(), GRASS])
    nearest: np.ndarray = np.linalg.norm(image[:, :, None] - known, axis=-1).argmin(-1)
    return nearest == list(COLOURS).index(name)


@pytest.mark.parametrize(
    ("name", "before", "after", "old", "new", "other", "size"),
    [
        ("Regional prompts", "First image", "Second image", "red", "yellow", "blue", 0.6),
        ("Regional prompts in one pass", "Plain image", "Image", "red", "yellow", "blue", 0.6),
        ("Replace an object", "First image", "Second image", "red", "yellow", "blue", 0.25),
    ],
)
def test_the_named_thing_changes_and_only_it(
    server: ComfyServer, name: str, before: str, after: str, old: str, new: str, other: str, size: float
) -> None:
    """``size``: of the new thing, against the old one; a star has a third of a circle's."""
    prompt = graph(name)
    run = server.run(prompt)
    plain, edited = saved(server, run, prompt, before), saved(server, run, prompt, after)
    thing, bystander = of_colour(plain, old), of_colour(plain, other)
    assert min(thing.mean(), bystander.mean()) > 0.02 and of_colour(plain, new).mean() < 0.01
    changed = of_colour(edited, new)
    around = ndimage.binary_dilation(thing, iterations=8)
    assert changed[around].sum() > size * thing.sum(), "the new colour is hardly there"
    assert of_colour(edited, old).sum() < 0.2 * thing.sum(), "the old colour is still there"
    assert changed[~around].mean() < 0.01, "the new colour is elsewhere, too"
    assert of_colour(edited, other)[bystander].mean() > 0.8, "the other thing changed"
