"""Scenes of things: a seed names a scene, captions name what is drawn, and labels are where it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from goca_core.demo import things
from goca_core.demo.scenes import COLOURS, SHAPES, draw
from goca_core.demo.shapes import BACKGROUNDS as SHAPE_BACKGROUNDS

CPU = torch.device("cpu")
SIZES = [(64, 64), (61, 97), (96, 40)]


@pytest.fixture(scope="module")
def plan() -> things.Plan:
    return things.plan(torch.arange(500), 128, 128)


def test_a_seed_names_a_scene_in_every_batch(plan: things.Plan) -> None:
    alone = things.plan(torch.tensor([321, 7]), 128, 128)
    for field in dataclasses.fields(things.Plan):
        assert torch.equal(getattr(alone, field.name), getattr(plan, field.name)[[321, 7]]), field.name
    first, again, other = (draw(seed, 48, 80, kind="things") for seed in (7, 7, 8))
    assert first.caption == again.caption and np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_seeds_of_today_name_the_same_scenes_tomorrow() -> None:
    assert [draw(seed, kind="things").caption for seed in (3, 8, 12, 18)] == [
        "a pig, a snowman and a house on water",
        "on wood, a fish, a pink book and a cake",
        "a car and a yellow triangle on asphalt",
        "a dog, a pumpkin and a blue square on sand",
    ]


def test_random_numbers_are_uniform_and_independent() -> None:
    drawn = things._Draws(torch.arange(4000)).next(3)
    assert drawn.min() >= 0 and drawn.max() < 1
    quarters = torch.histc(drawn, 4, 0, 1) / drawn.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25, dtype=torch.double), atol=0.015, rtol=0)
    assert (torch.corrcoef(torch.cat((drawn, drawn.roll(1, 0)), 1).T) - torch.eye(6)).abs().max() < 0.06


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_where_objects_are_drawn(size: tuple[int, int]) -> None:
    """Each object is drawn alone on black: it covers at least half of the pixels with its label, and less of the others."""
    scenes = things.plan(torch.arange(24), *size)
    renderer = things.Renderer(CPU, *size)
    empty = renderer.backgrounds(scenes, torch.Generator().manual_seed(0))
    images, labels = renderer.compose(empty, scenes.sprite, scenes.place)
    assert images.shape == (24, 3, *size) and labels.shape == (24, *size)
    expected, drawn = torch.zeros_like(labels), []
    for number in range(3):
        only = torch.full_like(scenes.sprite, -1)
        only[:, number] = scenes.sprite[:, number]
        on_black, _ = renderer.compose(torch.zeros_like(empty), only, scenes.place)
        on_white, _ = renderer.compose(torch.ones_like(empty), only, scenes.place)
        # What shows through is the background: its share is the difference between white and black.
        drawn.append((on_black, 1 - (on_white - on_black).mean(1)))
        expected[drawn[-1][1] > 0.5 - 1e-6] = number + 1
    for number, (on_black, opacity) in enumerate(drawn):
        above = sum((other for _, other in drawn[number + 1 :]), torch.zeros_like(opacity))
        clear = (labels == number + 1) & (opacity > 0.999) & (above < 1e-3)
        assert clear.any()
        torch.testing.assert_close(
            images.permute(0, 2, 3, 1)[clear], on_black.permute(0, 2, 3, 1)[clear], atol=2e-3, rtol=0
        )
    assert (expected != labels).float().mean() < 1e-4
    bare = labels == 0
    far = bare & (torch.nn.functional.max_pool2d((~bare).float()[:, None], 5, 1, 2)[:, 0] == 0)
    torch.testing.assert_close(images.permute(0, 2, 3, 1)[far], empty.permute(0, 2, 3, 1)[far])


@pytest.mark.parametrize("size", SIZES)
def test_a_scene_has_its_objects_inside(size: tuple[int, int]) -> None:
    for seed in range(30):
        scene = draw(seed, *size, kind="things")
        assert scene.image.shape == (*size, 3) and scene.labels.shape == size
        assert set(np.unique(scene.labels)) == set(range(len(scene.objects) + 1))
        for number, item in enumerate(scene.objects, start=1):
            rows, columns = np.nonzero(scene.labels == number)
            assert abs(rows.mean() + 0.5 - item.y * min(size)) < item.radius * min(size)
            assert abs(columns.mean() + 0.5 - item.x * min(size)) < item.radius * min(size)


def test_plain_captions_name_every_object_and_the_background() -> None:
    for seed in range(60):
        scene = draw(seed, 32, 32, kind="things", plain=True)
        assert scene.caption.endswith(f" on {scene.background}")
        assert all(item.name in scene.caption for item in scene.objects)
        colours = [item.colour for item in scene.objects if item.colour]
        assert len(set(colours)) == len(colours)
        assert len({item.shape for item in scene.objects}) == len(scene.objects)


def test_everything_is_drawn_and_named(plan: things.Plan) -> None:
    captions = plan.captions()
    words = {word for caption in captions for word in caption.replace(",", " ,").split()}
    assert words == set(things.WORDS)
    assert all("a orange" not in f" {caption}" and "an red" not in caption for caption in captions)
    assert {int((row >= 0).sum()) for row in plan.sprite} == {1, 2, 3}
    silent = sum(" on " not in f" {caption}" for caption in captions)
    first = sum(caption.startswith("on ") for caption in captions)
    assert 0.02 < silent / 500 < 0.09 and 0.02 < first / 500 < 0.09


def test_one_object_of_a_corrupted_scene_is_another(plan: things.Plan) -> None:
    changed = plan.sprite != plan.wrong
    assert (changed.sum(1) == 1).all() and (plan.wrong[changed] >= 0).all() and (plan.sprite[changed] >= 0).all()
    before, after = (
        [things.SPRITES[number] for number in sprites[changed].tolist()] for sprites in (plan.sprite, plan.wrong)
    )
    recoloured = np.mean([old[1] == new[1] for old, new in zip(before, after, strict=True)])
    assert 0.08 < recoloured < 0.35


def test_the_words_of_shapes_mean_the_same() -> None:
    """A sprite of a shape has the colour and outline that scenes of shapes have; backgrounds have the same mean colour."""
    sheet = things.sprites()
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            sprite = sheet[things.SPRITES.index((colour, shape))]
            assert np.abs(sprite[sprite[..., 3] == 255][:, :3].astype(int) - rgb).max() <= 1
    for name in SHAPE_BACKGROUNDS:
        old, new = (
            np.mean([scene.empty.mean((0, 1)) for scene in scenes if scene.background == name], 0)
            for scenes in (
                [draw(seed) for seed in range(40)],
                [draw(seed, 64, 64, kind="things") for seed in range(40)],
            )
        )
        assert np.abs(old - new).max() < 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"height": 8, "width": 64}, "at least 16 pixels, got 8x64"), ({"kind": "people"}, 'no scenes of "people"')],
)
def test_what_cannot_be_drawn_is_refused(asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(0, **{"kind": "things", **asked})
