"""Each loader on small data in the layout of its authors; label values and scores worked out by hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from goca_core.demo.scenes import draw
from goca_core.evaluate.datasets.base import IGNORE, ClassName, DataError, Dataset, Item
from goca_core.evaluate.datasets.classes import parse, read
from goca_core.evaluate.datasets.registry import DATASETS, open_dataset
from goca_core.evaluate.protocol import mean_iou
from goca_core.metrics import Confusion

from .layouts import KEYS, Layout, smooth_image

SIX = tuple(KEYS)

# Values in the files of the authors, and what they are to be: (values, official, reference).
READING: dict[str, tuple[list[list[int]], list[list[int]], list[list[int]]]] = {
    "voc": ([[0, 1, 255], [20, 15, 255]], [[0, 1, -1], [20, 15, -1]], [[0, 1, 0], [20, 15, 0]]),
    # 2 aeroplane, 284 person, 458 wood, 424 truck; 1 accordion and 459 wool are not among the 59
    "context": ([[2, 1, 284], [458, 459, 424]], [[1, -1, 37], [59, -1, 54]], [[1, 0, 37], [59, 0, 54]]),
    # 1 person, 13 stop sign, 90 toothbrush are things; 92 and 200 are stuff; 0 is no segment
    "coco-object": ([[1, 92, 0], [13, 90, 200]], [[1, 0, -1], [12, 80, 0]], [[1, 0, 0], [12, 80, 0]]),
    # label - 1: person, banana, cabinet, fruit, waterdrops, wood; 255 unlabelled
    "coco-stuff": (
        [[0, 51, 97], [121, 178, 181], [255, 61, 156]],
        [[10, 3, 16], [15, 27, 25], [-1, 4, 24]],
        [[10, 3, 4], [3, 27, 25], [0, 4, 24]],
    ),
    # 7 road, 24 person, 33 bicycle; 0 unlabelled, 9 parking, 255 licence plate
    "cityscapes": ([[7, 24, 33], [0, 9, 255]], [[1, 12, 19], [-1, -1, -1]], [[1, 12, 19], [0, 0, 0]]),
    "ade20k": ([[0, 1, 150], [13, 0, 2]], [[-1, 1, 150], [13, -1, 2]], [[0, 1, 150], [13, 0, 2]]),
}

# Values of two classes and of a pixel that does not count, the ids of the two, and how many classes the mean is over.
SCORING: dict[str, tuple[tuple[int, int, int], tuple[int, int], int, int]] = {
    "voc": ((15, 8, 255), (15, 8), 21, 21),
    "context": ((65, 187, 3), (15, 29), 59, 60),
    "coco-object": ((17, 90, 0), (16, 80), 81, 81),
    "coco-stuff": ((0, 156, 255), (10, 24), 27, 28),
    "cityscapes": ((26, 7, 4), (14, 1), 19, 20),
    "ade20k": ((5, 126, 0), (5, 126), 150, 151),
}


@pytest.fixture(params=SIX)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return Layout(request.param, tmp_path)


def filled(name: str, root: Path, seed: int = 0) -> Layout:
    """Three images of several sizes with random labels out of the values of READING."""
    rng = np.random.default_rng(seed)
    made = Layout(name, root)
    for key, shape in zip(KEYS[name], ((5, 7), (9, 4), (6, 6)), strict=True):
        made.add(key, rng.choice(np.ravel(READING[name][0]), shape))
    return made


def opened(made: Layout, **options: Any) -> Dataset:
    return open_dataset(made.name, made.root, **options)


@pytest.mark.parametrize("reference", [False, True])
def test_label_values(layout: Layout, reference: bool) -> None:
    values, official, old = READING[layout.name]
    layout.add(KEYS[layout.name][0], np.array(values))
    dataset = opened(layout, reference=reference)
    label = dataset.label(dataset.items[0])
    assert label.dtype == np.int64
    assert label.tolist() == (old if reference else official)


@pytest.mark.parametrize("reference", [False, True])
def test_images_of_several_sizes(layout: Layout, reference: bool) -> None:
    filled(layout.name, layout.root)
    dataset = opened(layout, reference=reference)
    assert dataset.name == layout.name
    assert len(dataset.items) == 3
    for item in dataset.items:
        image, label = dataset.image(item), dataset.label(item)
        assert image.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        place = KEYS[layout.name].index(item.key)
        assert image.shape[:2] == ((5, 7), (9, 4), (6, 6))[place]
        assert np.abs(image.astype(int) - smooth_image(label.shape, place + 1)).mean() < 6
        assert set(np.unique(label)) <= set(np.ravel(READING[layout.name][2 if reference else 1]))
        assert (label == IGNORE).any() <= (not reference)


@pytest.mark.parametrize("reference", [False, True])
def test_scores_by_hand(layout: Layout, reference: bool) -> None:
    """Nine pixels count under the official protocol, three more under the reference's, where void is background."""
    (a, b, v), (first, second), official, old = SCORING[layout.name]
    key = KEYS[layout.name]
    layout.add(key[0], np.array([[a, a, b], [b, v, v]]))
    layout.add(key[1], np.array([[a, b], [v, a], [b, b]]))
    predicted = {
        key[0]: np.array([[first, second, second], [second, first, 0]]),
        key[1]: np.array([[first, second], [second, 0], [second, second]]),
    }
    dataset = opened(layout, reference=reference)
    counts = Confusion(len(dataset.classes))
    for item in dataset.items:
        counts.update(predicted[item.key], dataset.label(item), ignore=IGNORE)
    assert len(dataset.scored) == (old if reference else official)
    if reference:
        # first: 2 right, 4 true, 3 said; second: 5 right, 5 true, 7 said; background: 1 right, 3 true, 2 said
        expected = (2 / 5 + 5 / 7 + 1 / 4) / old
        assert counts.matrix.sum() == 12
    else:
        # first: 2 right of 4 true, 2 said; second: 5 right, 5 true, 6 said; background said once, never true
        expected = (2 / 4 + 5 / 6) / official
        assert counts.matrix.sum() == 9
    assert mean_iou(counts, dataset.scored) == pytest.approx(expected, abs=1e-9)


def test_order_and_splits(tmp_path: Path) -> None:
    for name in SIX:
        made = filled(name, tmp_path / name)
        listed = name in ("voc", "context")
        keys = list(KEYS[name]) if listed else sorted(KEYS[name])
        assert [item.key for item in opened(made).items] == keys
        assert [item.key for item in opened(made, reference=True).items] == (keys[::-1] if listed else keys)
        assert opened(made).split in ("val", "val2017", "validation")
    lists = tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "trainval.txt").write_text(f"{KEYS['voc'][1]}\n\n{KEYS['voc'][0]}\n")
    chosen = open_dataset("voc", tmp_path / "voc", split="trainval")
    assert [item.key for item in chosen.items] == [KEYS["voc"][1], KEYS["voc"][0]]
    assert chosen.split == "trainval"


def test_other_places_of_the_root(tmp_path: Path) -> None:
    """The folder around the development kit, the kit, and the year alone are all understood."""
    filled("voc", tmp_path)
    roots = (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2012")
    assert len({open_dataset("voc", root).items for root in roots}) == 1
    filled("ade20k", tmp_path)
    inner = tmp_path / "ADEChallengeData2016"
    assert open_dataset("ade20k", tmp_path).items == open_dataset("ade20k", str(inner)).items


def test_context_without_a_label(tmp_path: Path) -> None:
    made = filled("context", tmp_path)
    made.label(KEYS["context"][1]).unlink()
    assert len(opened(made, reference=True).items) == 2
    dataset = opened(made)
    assert len(dataset.items) == 3
    with pytest.raises(DataError, match=KEYS["context"][1]) as error:
        dataset.label(dataset.items[1])
    assert error.value.kind == "missing"


def test_coco_stuff_numbered_from_one(tmp_path: Path) -> None:
    made = Layout("coco-stuff", tmp_path)
    made.add(KEYS["coco-stuff"][0], np.array([[1, 52, 0], [182, 255, 98]]))
    dataset = opened(made, one_based=True)
    assert dataset.label(dataset.items[0]).tolist() == [[10, 3, -1], [25, -1, 16]]
    dataset = opened(made, one_based=True, reference=True)
    assert dataset.label(dataset.items[0]).tolist() == [[10, 3, 0], [25, 0, 4]]


def test_random_panoptic_labels(tmp_path: Path) -> None:
    made = Layout("coco-object", tmp_path)
    rng = np.random.default_rng(3)
    values = [rng.integers(0, 200, shape) for shape in ((13, 21), (30, 11), (8, 40))]
    _, ids = read("coco-object")
    for value in values:
        value[(value < 91) & (value > 0) & ~np.isin(value, list(ids))] = 1
    for key, value in zip(KEYS["coco-object"], values, strict=True):
        made.add(key, value)
    dataset = opened(made)
    for item, value in zip(dataset.items, values, strict=True):
        expected = [[-1 if v == 0 else ids[v] if v < 91 else 0 for v in row] for row in value.tolist()]
        assert dataset.label(item).tolist() == expected


def test_missing_files_are_named(layout: Layout) -> None:
    made = filled(layout.name, layout.root)
    dataset = opened(made)
    first, second = dataset.items[:2]
    made.image(first.key).unlink()
    made.label(second.key).unlink()
    for call in (dataset.image, dataset.label):
        with pytest.raises(DataError, match=f"image of {first.key} is missing") as error:
            call(first)
        assert error.value.kind == "missing"
    dataset.image(second)
    with pytest.raises(DataError, match=f"label of {second.key} is missing"):
        dataset.label(second)


def test_broken_files_are_named(layout: Layout) -> None:
    made = filled(layout.name, layout.root)
    dataset = opened(made)
    cut, text, short = dataset.items
    Image.effect_noise((64, 48), 90).convert("RGB").save(made.image(cut.key))
    made.image(cut.key).write_bytes(made.image(cut.key).read_bytes()[:700])
    made.image(text.key).write_text("<html>404</html>")
    made.label(short.key).write_bytes(made.label(short.key).read_bytes()[:60])
    for item, call, what in (
        (cut, dataset.image, "image"),
        (text, dataset.image, "image"),
        (short, dataset.label, "label"),
    ):
        with pytest.raises(DataError, match=f"{what} of {item.key}") as error:
            call(item)
        assert error.value.kind == "unreadable"


def test_sizes_that_differ(layout: Layout) -> None:
    made = filled(layout.name, layout.root)
    dataset = opened(made)
    item = dataset.items[0]
    height, width = dataset.label(item).shape
    Image.fromarray(smooth_image((width, height))).save(made.image(item.key))
    with pytest.raises(
        DataError, match=f"{item.key} has {width}x{height} pixels but its image {height}x{width}"
    ) as error:
        dataset.label(item)
    assert error.value.kind == "size"


@pytest.mark.parametrize(
    ("name", "value"), [("voc", 21), ("context", 460), ("coco-stuff", 182), ("cityscapes", 34), ("ade20k", 151)]
)
def test_values_without_a_class(name: str, value: int, tmp_path: Path) -> None:
    made = Layout(name, tmp_path)
    made.add(KEYS[name][0], np.array([[READING[name][0][0][0], value]]))
    dataset = opened(made)
    with pytest.raises(DataError, match=f"{KEYS[name][0]} holds the value {value}") as error:
        dataset.label(dataset.items[0])
    assert error.value.kind == "value"
    if name in ("voc", "ade20k"):  # the reference takes what is above the last class for background
        dataset = opened(made, reference=True)
        assert dataset.label(dataset.items[0])[0, 1] == 0


def test_label_of_another_kind(tmp_path: Path) -> None:
    """Colours where numbers belong, and the other way round."""
    made = filled("voc", tmp_path / "voc")
    dataset = opened(made)
    Image.fromarray(smooth_image((5, 7))).save(made.label(dataset.items[0].key))
    with pytest.raises(DataError, match="mode RGB"):
        dataset.label(dataset.items[0])
    made = filled("coco-object", tmp_path / "coco")
    dataset = opened(made)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(made.label(dataset.items[0].key))
    with pytest.raises(DataError, match="mode L"):
        dataset.label(dataset.items[0])
    made = filled("context", tmp_path / "context")
    dataset = opened(made)
    for content in ({"Other": np.ones((5, 7), np.uint16)}, {"LabelMap": np.ones((5, 7, 2), np.uint16)}):
        savemat(made.label(dataset.items[0].key), content)
        with pytest.raises(DataError, match="LabelMap") as error:
            dataset.label(dataset.items[0])
        assert error.value.kind == "unreadable"


def test_panoptic_notes_that_do_not_fit(tmp_path: Path) -> None:
    made = filled("coco-object", tmp_path)
    path = tmp_path / "annotations/panoptic_val2017.json"
    notes = json.loads(path.read_text())
    notes["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(notes))
    dataset = opened(made)
    with pytest.raises(DataError, match=f"{dataset.items[0].key} holds the segment"):
        dataset.label(dataset.items[0])
    for text in ("{", "[1, 2]", '{"images": []}', json.dumps({**notes, "categories": []})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"panoptic_val2017\.json"):
            opened(made)


def test_folders_and_lists_that_are_missing(tmp_path: Path) -> None:
    for name in SIX:
        with pytest.raises(DataError, match=f"{name} needs"):
            open_dataset(name, tmp_path)
        with pytest.raises(DataError, match="needs its folder"):
            open_dataset(name)
    filled("voc", tmp_path)
    with pytest.raises(DataError, match=r"vla\.txt; the lists there are train, val"):
        open_dataset("voc", tmp_path, split="vla")
    filled("cityscapes", tmp_path)
    with pytest.raises(DataError, match="leftImg8bit/night"):
        open_dataset("cityscapes", tmp_path, split="night")


def test_empty_data_sets(tmp_path: Path) -> None:
    (tmp_path / "images/validation").mkdir(parents=True)
    (tmp_path / "images/validation/._ADE_val_00000001.jpg").write_bytes(b"left by an archive")
    made = filled("voc", tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
    for name in ("ade20k", made.name):
        with pytest.raises(DataError, match="no images") as error:
            open_dataset(name, tmp_path)
        assert error.value.kind == "empty"
    with pytest.raises(DataError) as error:
        open_dataset("scenes", count=0)
    assert error.value.kind == "empty"


def test_an_image_listed_twice(tmp_path: Path) -> None:
    made = filled("voc", tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text(f"{made.keys[0]}\n{made.keys[0]}\n")
    with pytest.raises(DataError, match=f"{made.keys[0]} twice"):
        opened(made)


def test_names_and_options() -> None:
    assert tuple(DATASETS) == (*SIX, "scenes")
    with pytest.raises(DataError, match="voc, context, coco-object"):
        open_dataset("pascal")
    with pytest.raises(DataError, match="it has no options"):
        open_dataset("voc", Path(), count=3)
    with pytest.raises(DataError, match="its options are count, height, seed, width"):
        open_dataset("scenes", counts=3)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_images_of_other_modes(mode: str, tmp_path: Path) -> None:
    made = filled("cityscapes", tmp_path)
    item = opened(made).items[0]
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.fromarray(np.full((5, 7, 3), 102, np.uint8)).convert(mode).save(made.image(item.key), format=kind)
    image = opened(made).image(item)
    assert image.shape == (5, 7, 3)
    assert np.abs(image.astype(int) - 102).max() < 8


def test_data_sets_go_to_other_processes(tmp_path: Path) -> None:
    for name in (*SIX, "scenes"):
        dataset = open_dataset(name, None if name == "scenes" else filled(name, tmp_path / name).root)
        again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert again.items == dataset.items
        assert np.array_equal(again.label(again.items[0]), dataset.label(dataset.items[0]))
    error = pickle.loads(pickle.dumps(DataError("no", "size")))  # noqa: S301
    assert (str(error), error.kind) == ("no", "size")


def test_class_lists() -> None:
    sizes = {"voc": 21, "context": 60, "coco-object": 81, "coco-stuff": 28, "cityscapes": 20, "ade20k": 151}
    lists = {name: read(name) for name in sizes}
    for name, size in sizes.items():
        classes, ids = lists[name]
        assert len(classes) == size
        words = [word for one in classes for word in one.synonyms]
        assert len(words) == len(set(words)), "a word that means two classes"
        assert classes[0].name == "background"
        assert set(ids.values()) == set(range(1, size)), "a class without a value"
    voc, _ = lists["voc"]
    assert [voc[i].name for i in (1, 5, 11, 15, 20)] == ["aeroplane", "bottle", "dining table", "person", "television"]
    assert [lists["ade20k"][0][i].name for i in (1, 50, 100, 150)] == ["wall", "fireplace", "buffet", "flag"]
    cityscapes, _ = lists["cityscapes"]
    assert cityscapes[12] == ClassName("person", cityscapes[12].synonyms)
    assert cityscapes[12].synonyms[0] == "pedestrian"
    values = list(lists["context"][1])
    assert len(values) == 59 and values == sorted(values)
    assert len(lists["coco-object"][1]) == 80
    _, coarse = lists["coco-stuff"]
    assert sorted(coarse) == list(range(1, 183))
    # How many of the 182 labels each coarse class has, in the hierarchy that the authors published.
    sizes_of_branches = [6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]
    assert np.bincount(list(coarse.values()), minlength=28)[1:].tolist() == sizes_of_branches


@pytest.mark.parametrize("words", [(), ("",), ("Cat",), ("cat ",), ("a, b",), ("cat (house)",), ("cat#2",)])
def test_classes_need_words(words: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match='class "cat"') as error:
        ClassName("cat", words)
    assert error.value.kind == "words"


def test_class_table() -> None:
    classes, ids = parse("cat, kitten\nbig = dog\n")
    assert [name.name for name in classes] == ["background", "cat", "big"]
    assert [name.synonyms for name in classes] == [("background",), ("cat", "kitten"), ("dog",)]
    assert ids == {1: 1, 2: 2}
    with pytest.raises(DataError, match='class "lamp" has no words'):
        parse("cat\nlamp =\n")


def test_class_table_with_label_values() -> None:
    classes, ids = parse("# animals\n\n7: cat\n2 4-6: big = dog\n")
    assert [name.name for name in classes] == ["background", "cat", "big"]
    assert ids == {7: 1, 2: 2, 4: 2, 5: 2, 6: 2}


def test_scenes() -> None:
    dataset = open_dataset("scenes", count=12, seed=40, height=48, width=80)
    other = open_dataset("scenes", count=3, seed=50, height=48, width=80)
    assert [name.name for name in dataset.classes][:3] == ["background", "circle", "square"]
    assert [item.key for item in dataset.items][:2] == ["scene-40", "scene-41"]
    assert {item.key for item in dataset.items} & {item.key for item in other.items} == {"scene-50", "scene-51"}
    for item in dataset.items:
        scene = draw(int(item.key.split("-")[1]), 48, 80, plain=True)
        assert np.array_equal(dataset.image(item), scene.image)
        assert dataset.caption(item) == scene.caption
        label = dataset.label(item)
        assert label.shape == (48, 80)
        for number, thing in enumerate(scene.objects, start=1):
            shown = label[scene.labels == number]
            assert {dataset.classes[i].name for i in np.unique(shown)} <= {thing.shape}
        assert (label > 0).sum() == (scene.labels > 0).sum()
    dataset.image(dataset.items[0])[:] = 0  # what is handed out is the caller's own
    assert dataset.image(dataset.items[0]).any()


def test_scenes_that_cannot_be() -> None:
    for options in ({"count": -1}, {"seed": -5}, {"height": 8}, {"split": "val"}):
        with pytest.raises(DataError):
            open_dataset("scenes", **options)
    dataset = open_dataset("scenes", count=1)
    for key in ("2007_000033", "scene-", "scene-x"):
        with pytest.raises(DataError, match=f'no scene "{key}"'):
            dataset.label(Item(key, None, None))
