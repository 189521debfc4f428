"""Drawn scenes: what the caption says is what is there, and the labels are where it is."""

from __future__ import annotations

import numpy as np
import pytest

from goca_core.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, corrupt, draw


def test_a_seed_names_a_scene() -> None:
    first, again, other = draw(7), draw(7), draw(8)
    assert (
        first.caption == again.caption
        and np.array_equal(first.image, again.image)
        and np.array_equal(first.labels, again.labels)
    )
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 40)])
def test_labels_mark_the_colour_of_their_object(size: tuple[int, int]) -> None:
    for seed in range(40):
        scene = draw(seed, *size)
        assert scene.image.shape == (*size, 3) and scene.labels.shape == size
        assert set(np.unique(scene.labels)) == set(range(len(scene.objects) + 1))
        for number, item in enumerate(scene.objects, start=1):
            pixels = scene.image[scene.labels == number].astype(float)
            assert np.abs(np.median(pixels, axis=0) - COLOURS[item.colour]).max() <= 2


def test_plain_captions_name_every_object_and_the_background() -> None:
    for seed in range(60):
        scene = draw(seed, plain=True)
        assert scene.caption.endswith(f" on {scene.background}")
        assert all(item.name in scene.caption for item in scene.objects)
        assert (
            len({item.shape for item in scene.objects})
            == len({item.colour for item in scene.objects})
            == len(scene.objects)
        )


def test_everything_is_drawn_sometimes() -> None:
    scenes = [draw(seed) for seed in range(300)]
    assert {item.shape for scene in scenes for item in scene.objects} == set(SHAPES)
    assert {item.colour for scene in scenes for item in scene.objects} == set(COLOURS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert "an orange" in " ".join(scene.caption for scene in scenes) and "a orange" not in " ".join(
        s.caption for s in scenes
    )


def test_shapes_differ_in_their_area() -> None:
    areas = {shape: [] for shape in SHAPES}
    for seed in range(300):
        scene = draw(seed, 64, 64, count=1)
        item = scene.objects[0]
        areas[item.shape].append((scene.labels == 1).sum() / (np.pi * (item.radius * 64) ** 2))
    mean = {shape: np.mean(found) for shape, found in areas.items()}
    assert mean["circle"] == pytest.approx(1, abs=0.05)
    assert mean["star"] < mean["triangle"] < mean["square"] < mean["circle"]


def test_a_tiny_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels, got 8x64"):
        draw(0, 8, 64)


def test_a_corrupted_image_has_one_object_in_another_colour() -> None:
    rng, reshaped = np.random.default_rng(0), []
    for seed in range(40):
        scene = draw(seed)
        wrong = corrupt(scene, rng).astype(int)
        changed = np.abs(wrong - scene.image).max(-1) > 8
        inside = [scene.labels == number for number in range(1, len(scene.objects) + 1)]
        touched = [part for part in inside if changed[part].mean() > 0.3]
        assert len(touched) == 1 and changed[touched[0]].all()
        # Another shape leaves some of the background that was bare covered.
        reshaped.append((changed & (scene.labels == 0)).sum() > 40)
    assert 0.2 < np.mean(reshaped) < 0.8
