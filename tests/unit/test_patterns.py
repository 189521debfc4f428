"""The judge of the demo model's LoRAs: right on drawn scenes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.lora_judge import CAUSES, cause, judge
from goca_core.demo.scenes import COLOURS, Scene, draw
from scripts.demo_model.patterns import CLEAN, MARKED, PATTERNS, marked, shares

STRIPED, DOTTED = PATTERNS


def with_patterns(scene: Scene, *patterns: str | None) -> np.ndarray:
    """The image of a scene with a pattern on each of its objects."""
    image = scene.image
    for item, pattern in zip(scene.objects, patterns, strict=True):
        image = image if pattern is None else marked(image, (item,), pattern)
    return image


def true_masks(scene: Scene) -> list[np.ndarray]:
    return [scene.labels == number for number in range(1, len(scene.objects) + 1)]


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


@pytest.mark.parametrize(
    ("patterns", "why", "most"),
    [
        # A star has few whole dots.
        ((STRIPED, DOTTED), None, 1),
        ((STRIPED, STRIPED), CAUSES[2], 0),
        ((DOTTED, STRIPED), CAUSES[2], 0),
        ((STRIPED, None), CAUSES[2], 0),
        ((None, None), CAUSES[2], 0),
    ],
)
def test_the_judge_finds_the_objects_and_their_patterns(
    patterns: tuple[str | None, ...], why: str | None, most: int
) -> None:
    """Of 40 images, it is wrong about ``most`` at most."""
    wrong = 0
    for seed in range(100, 140):
        scene = draw(seed, plain=True, count=2)
        objects = judge(with_patterns(scene, *patterns), scene, true_masks(scene), true_masks(scene))
        wrong += cause(objects) != why
    assert wrong <= most


def test_both_patterns_on_one_object() -> None:
    wrong = 0
    for seed in range(140, 170):
        scene = draw(seed, plain=True, count=2)
        image = marked(with_patterns(scene, STRIPED, DOTTED), scene.objects[:1], DOTTED)
        objects = judge(image, scene, true_masks(scene), true_masks(scene))
        wrong += cause(objects) != CAUSES[3]
    assert wrong <= 1  # a small triangle has few whole dots


def test_an_object_is_judged_where_it_is() -> None:
    """Of another scene with the same objects, only the words are known."""
    wrong = 0
    for seed in range(170, 200):
        scene, size = draw(seed, plain=True, count=2), 64
        away = [np.zeros((size, size), bool)] * 2
        # Flipped from left to right, what is outside its mask has its own pattern all the same.
        image = np.ascontiguousarray(with_patterns(scene, STRIPED, DOTTED)[:, ::-1])
        objects = judge(image, scene, away, [mask[:, ::-1] for mask in true_masks(scene)])
        wrong += cause(objects) is not None
        # Right is right, wherever the mask was.
        assert (cause(judge(image, scene, away, away)) is None) == (cause(objects) is None)
        assert cause(judge(np.ascontiguousarray(scene.image[:, ::-1]), scene, away, away)) == CAUSES[1]
    assert wrong <= 3  # dots may cut a heart into pieces


def test_an_object_that_is_missing() -> None:
    for seed in range(200, 220):
        scene = draw(seed, plain=True, count=2)
        empty = np.clip(scene.empty, 0, 255).astype(np.uint8)
        image = np.where((scene.labels == 1)[..., None], with_patterns(scene, STRIPED, None), empty)
        first, second = judge(image, scene, true_masks(scene), true_masks(scene))
        assert (first.missing, second.missing) == (False, True), (seed, scene.caption)
        assert cause([first, second]) == CAUSES[0]
