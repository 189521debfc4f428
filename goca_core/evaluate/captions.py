"""Prompts for a picture, and which words of them mean which class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset


@dataclass(frozen=True)
class Prompt:
    """What is encoded, and the phrases in it.

    Phrases are written for `words.resolve` and used as they are, several of a class joined by ", ". objects: class id ->
    phrases that are pooled. supports: phrases without a class, the background. lost: phrases whose tokens belong to no
    entity and not to the content words either; only the reference's way of finding words leaves such behind.
    """

    text: str
    objects: Mapping[int, tuple[str, ...]]
    supports: tuple[str, ...]
    lost: tuple[str, ...] = ()


def present_classes(label: NDArray[np.int64]) -> tuple[int, ...]:
    """The classes that occur in a label, ascending, without the background and without pixels that do not count."""
    return tuple(int(value) for value in np.unique(label) if value > 0)


def oracle_prompt(dataset: Dataset, present: tuple[int, ...]) -> Prompt:
    """The names of the classes that the ground truth holds."""
    names = {number: (dataset.classes[number].synonyms[0],) for number in present}
    supports = ("background",) if dataset.background_word else ()
    return Prompt(", ".join([*(name for (name,) in names.values()), *supports]), names, supports)
