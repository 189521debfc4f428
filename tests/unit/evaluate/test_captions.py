"""Prompts, and that each phrase of them means its own words and no others."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from goca_core.evaluate.datasets import classes
from goca_core.evaluate.datasets.base import IGNORE, ClassName, DataError, Dataset, Item
from goca_core.evaluate.datasets.registry import open_dataset
from goca_core.evaluate.prompts.captions import (
    Prompt,
    all_classes_prompt,
    caption_prompt,
    load_captions,
    oracle_prompt,
    present_classes,
    sentence_prompt,
)
from goca_core.evaluate.prompts.lists import split_list, split_list_as_reference
from goca_core.evaluate.prompts.phrases import Text
from goca_core.words.text import fold_words
from goca_core.words.word_map import WordMap, resolve

LISTS = {
    name: classes.read(name)[0] for name in ("voc", "context", "coco-object", "coco-stuff", "cityscapes", "ade20k")
}


class Words(Dataset):
    """Classes without images."""

    name = "words"
    layout = "nothing"
    default_split = reference_split = "none"
    items = ()

    def __init__(
        self, *names: str | ClassName, background_word: bool = False, add_missing: bool = False, sentences: bool = False
    ) -> None:
        super().__init__()
        self.classes = (
            ClassName("background", ("background",)),
            *(n if isinstance(n, ClassName) else one(n) for n in names),
        )
        self.scored = tuple(range(len(self.classes)))
        self.background_word, self.add_missing, self.sentences = background_word, add_missing, sentences

    def image(self, item: Item) -> np.ndarray:
        raise NotImplementedError

    def label(self, item: Item) -> np.ndarray:
        raise NotImplementedError


def one(words: str) -> ClassName:
    """ "cat, kitten" is one class."""
    parts = tuple(part.strip() for part in words.split(","))
    return ClassName(parts[0], parts)


def word_map(text: str) -> WordMap:
    """One token for each word and each sign, as an encoder without sub-words would have it."""
    return Text(text).map


def meant(prompt: Prompt) -> tuple[dict[int, list[str]], list[list[str]]]:
    """The words that objects and supports stand for. Every phrase must be found, and no two may share a word."""
    words = word_map(prompt.text)
    lines = [", ".join(phrases) for phrases in prompt.objects.values()] + list(prompt.supports)
    found = [phrase.tokens for phrase in resolve("\n".join(lines), words)] if lines else []
    taken = [token for tokens in found for token in tokens]
    assert len(taken) == len(set(taken)), "a word that belongs to two entities"
    spoken = [[words.words[token].text for token in tokens] for tokens in found]
    count = len(prompt.objects)
    return dict(zip(prompt.objects, spoken[:count], strict=True)), spoken[count:]


def places(prompt: Prompt) -> tuple[dict[int, tuple[int, ...]], list[tuple[int, ...]], set[int]]:
    """Word numbers of objects and supports, commas not counted, and those of the lost entities."""
    words = word_map(prompt.text)
    named = [i for i, word in enumerate(words.words) if word.keys]

    def numbers(line: str) -> tuple[int, ...]:
        return tuple(named.index(token) for phrase in resolve(line, words) for token in phrase.tokens)

    objects = {number: numbers(", ".join(phrases)) for number, phrases in prompt.objects.items()}
    return objects, [numbers(line) for line in prompt.supports], {n for line in prompt.lost for n in numbers(line)}


def test_present_classes() -> None:
    label = np.array([[0, 3, IGNORE], [12, 3, 0]])
    assert present_classes(label) == (3, 12)
    assert present_classes(np.full((2, 3), IGNORE)) == ()


def test_captions_of_the_benchmarks() -> None:
    """Captions as the reference's language model writes them, and what its captioner makes of them."""
    dataset = Words("aeroplane", "horse", background_word=True)
    prompt = caption_prompt(dataset, "aeroplane, trees, grass, snow, pavement, building, pole.", [1])
    assert prompt.text == "aeroplane, trees, grass, snow, pavement, building, pole, background"
    assert places(prompt) == ({1: (0,)}, [(n,) for n in range(1, 8)], set())
    prompt = caption_prompt(dataset, "(horse, harness), grass, rope", [2])
    assert prompt.text == "horse, harness, grass, rope, background"
    assert places(prompt) == ({2: (0, 1)}, [(2,), (3,), (4,)], set())
    for caption in ("aeroplane, trees, grass", "(horse, harness), grass, rope"):
        assert caption_prompt(dataset, caption, [1, 2], reference=True) == caption_prompt(dataset, caption, [1, 2])


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("Cat, Grass, Sky.", [("cat",), ("grass",), ("sky",)]),
        ("(zebra), grass", [("zebra",), ("grass",)]),
        ("boat, (lamp post), dock, sky", [("boat",), ("lamp post",), ("dock",), ("sky",)]),
        ("sky, (person, hat), (cat), grass", [("sky",), ("person", "hat"), ("cat",), ("grass",)]),
        ("(person, (hat, feather), coat), sky", [("person", "hat", "feather", "coat"), ("sky",)]),
        ("horse (saddle, rope), sky", [("horse", "saddle", "rope"), ("sky",)]),
        ("(person, hat)sky,(cat,dog)", [("person", "hat", "sky"), ("cat", "dog")]),
        ("(person, hat, tree", [("person",), ("hat",), ("tree",)]),
        ("person, hat), tree", [("person",), ("hat",), ("tree",)]),
        (") cat (", [("cat",)]),
        ("cat,, ,dog,", [("cat",), ("dog",)]),
        ("(), cat, (,), ( )", [("cat",)]),
        ("cat, dog, Cat, dog .", [("cat",), ("dog",)]),
        ("(cat, cat), cat", [("cat",)]),
        ("'(person, clothes), sky.'", [("person", "clothes"), ("sky",)]),
        ("cat\nbig   dog", [("cat",), ("big dog",)]),
        ("room #2, a\\b, -, ...", [("room 2",), ("a b",)]),
        ("", []),
        (" . ", []),
    ],
)
def test_lists(caption: str, things: list[tuple[str, ...]]) -> None:
    assert split_list(caption) == things


def test_no_word_of_a_list_is_lost() -> None:
    rng = random.Random(1)
    signs = ["cat", "Dog", "ice rink", "ice", "t-shirt", "(", ")", ",", ", ", " ", "(", "),", "man's", ".", "the sky"]
    for _ in range(400):
        caption = "".join(rng.choice(signs) for _ in range(rng.randint(0, 14)))
        said = {word for part in caption.replace("(", ",").replace(")", ",").split(",") for word in fold_words(part)}
        kept = {word for thing in split_list(caption) for part in thing for word in fold_words(part)}
        assert kept == said, caption


@pytest.mark.parametrize(
    ("caption", "entries"),
    [
        ("(zebra), grass, tree", ["(zebra)", "grass", "tree"]),
        ("sky, (person, clothes, hat), grass", ["sky", "(person, clothes, hat)", "grass"]),
        # A group of one entry holds what follows and is forgotten when another group opens, or at the end.
        ("boat, (lamp post), dock, sky", ["boat"]),
        ("boat, (lamp post), dock, (person, hat), sky", ["boat", "(person, hat)", "sky"]),
        ("boat, (lamp post), dock, (hill), sky", ["boat"]),
        ("boat,(lamp post), dock", ["boat", "(lamp post)", "dock"]),
        ("sky, sky, grass", ["sky", "grass"]),
        ("(person, clothes", []),
    ],
)
def test_lists_as_the_reference_cuts_them(caption: str, entries: list[str]) -> None:
    assert split_list_as_reference(caption) == entries


def test_a_swallowed_end() -> None:
    """To the reference what comes after a group of one entry is lost, the background too; not to us."""
    dataset = Words("boat", "dock, pier", background_word=True)
    caption = "boat, (lamp post), dock, sky."
    prompt = caption_prompt(dataset, caption, [1, 2])
    assert prompt.text == "boat, lamp post, dock, sky, background"
    assert meant(prompt) == ({1: ["boat"], 2: ["dock"]}, [["lamp", "post"], ["sky"], ["background"]])
    old = caption_prompt(dataset, caption, [1, 2], reference=True)
    assert old == Prompt("boat", {1: ("boat",)}, ())


@pytest.mark.parametrize(
    ("caption", "names", "objects", "supports", "kept"),
    [
        ("ice rink, ice, person", ("ice",), {1: (2,)}, [(0, 1), (3,)], {}),
        ("bookshelf, books", ("book, books",), {1: (1,)}, [(0,)], {}),
        ("ice, ice rink", ("ice",), {1: (0,)}, [(1, 2)], {1: (0,)}),
        ("sea, season ticket, sea lion", ("sea",), {1: (0,)}, [(1, 2), (3, 4)], {1: (0,)}),
    ],
)
def test_words_inside_others(
    caption: str,
    names: tuple[str, ...],
    objects: dict[int, tuple[int, ...]],
    supports: list[tuple[int, ...]],
    kept: dict[int, tuple[int, ...]],
) -> None:
    """The reference searches for an entity where its text first occurs, and so loses its own words."""
    dataset = Words(*names)
    prompt = caption_prompt(dataset, caption, [1])
    assert places(prompt) == (objects, supports, set())
    old = caption_prompt(dataset, caption, [1], reference=True)
    assert old.text == prompt.text
    found, others, lost = places(old)
    assert (found, others) == (kept, supports)
    assert lost == (set() if kept else set(objects[1]))


def test_groups() -> None:
    dataset = Words("person, man", "horse", "cat")
    # One class of the ground truth, or none: the group is one entity. Two: they part, and the rest is dropped.
    assert meant(caption_prompt(dataset, "(person, clothes, hat), grass", [1])) == (
        {1: ["person", "clothes", "hat"]},
        [["grass"]],
    )
    assert meant(caption_prompt(dataset, "(saddle, man), grass", [1])) == ({1: ["saddle", "man"]}, [["grass"]])
    assert meant(caption_prompt(dataset, "(person, clothes), grass", [2])) == ({}, [["person", "clothes"], ["grass"]])
    prompt = caption_prompt(dataset, "(man, horse, hat), cat, horse", [1, 2])
    assert prompt.text == "man, horse, cat"
    assert meant(prompt) == ({1: ["man"], 2: ["horse"]}, [["cat"]])


def test_how_a_class_is_named() -> None:
    dataset = Words("person, people", "bus", "box", "berry", "tray")
    prompt = caption_prompt(dataset, "Buses, people, the box, boxes, berries, trays, persons, personal", range(1, 6))
    assert meant(prompt)[0] == {
        1: ["people", "persons"],
        2: ["buses"],
        3: ["box", "boxes"],
        4: ["berries"],
        5: ["trays"],
    }
    assert meant(prompt)[1] == [["personal"]]


def test_missing_classes_and_the_background() -> None:
    dataset = Words("cat", "big dog, dog", "house", background_word=True, add_missing=True)
    prompt = caption_prompt(dataset, "dog house, cat.", [3, 1, 2])
    assert prompt.text == "dog house, cat, background, big dog, house"
    assert meant(prompt) == ({1: ["cat"], 2: ["big", "dog"], 3: ["house"]}, [["dog", "house"], ["background"]])
    assert caption_prompt(dataset, "Background, cat", [1]).text == "background, cat"
    assert caption_prompt(dataset, "", [2]).text == "background, big dog"
    plain = Words("cat", "dog")
    assert caption_prompt(plain, "cat, tree", [1, 2]).text == "cat, tree"
    assert caption_prompt(plain, " ", []) == Prompt("", {}, ())


def test_phrases_of_random_captions() -> None:
    """Every content word belongs to exactly one entity, whatever repeats or overlaps."""
    rng = random.Random(5)
    nouns = [
        "ice",
        "ice rink",
        "rink",
        "cat",
        "cat house",
        "house",
        "a cat",
        "and",
        "t-shirt",
        "t shirt",
        "ice ice",
        "Cat!",
    ]
    dataset = Words("ice", "cat", "house", "rink, ice rink", background_word=True, add_missing=True)
    for _ in range(400):
        parts = [rng.choice(nouns) for _ in range(rng.randint(1, 9))]
        caption = ""
        for part in parts:
            caption += rng.choice([", ", ",", ", (", "), "]) + part
        present = rng.sample(range(1, 5), rng.randint(0, 4))
        prompt = caption_prompt(dataset, caption, present)
        objects, supports = meant(prompt)
        assert set(objects) == set(present)
        words = word_map(prompt.text)
        spoken = [word for entity in (*objects.values(), *supports) for word in entity]
        assert sorted(spoken) == sorted(words.words[i].text for i in words.content()), caption
        old = caption_prompt(dataset, caption, present, reference=True)
        meant(old)
        assert set(old.objects) <= set(present)


def test_a_phrase_that_overlaps_itself() -> None:
    prompt = caption_prompt(Words("cat"), "ice, ice ice, cat", [1])
    assert places(prompt) == ({1: (3,)}, [(0,), (1, 2)], set())


@pytest.mark.parametrize("name", LISTS)
def test_prompts_of_names(name: str) -> None:
    dataset = Words(*LISTS[name][1:], background_word=name in ("voc", "coco-object", "ade20k"))
    prompt = all_classes_prompt(dataset)
    objects, supports = meant(prompt)
    assert list(objects) == list(range(1, len(LISTS[name])))
    assert [" ".join(words) for words in objects.values()] == [
        " ".join(fold_words(c.synonyms[0])) for c in LISTS[name][1:]
    ]
    assert supports == ([["background"]] if dataset.background_word else [])
    rng = random.Random(2)
    for _ in range(20):
        present = tuple(sorted(rng.sample(range(1, len(LISTS[name])), rng.randint(0, 9))))
        prompt = oracle_prompt(dataset, present)
        assert tuple(meant(prompt)[0]) == present
        assert prompt.text.endswith(", background" if present and dataset.background_word else "")


def test_names_inside_names() -> None:
    prompt = oracle_prompt(Words("screen door", "door", "screen"), [1, 2, 3])
    assert prompt.text == "screen door, door, screen"
    assert places(prompt)[0] == {1: (0, 1), 2: (2,), 3: (3,)}
    assert oracle_prompt(Words("cat"), []) == Prompt("", {}, ())


def test_classes_that_share_their_words() -> None:
    dataset = Words("food, meal", "food, fruit", "food")
    assert oracle_prompt(dataset, [1, 2]).text == "food, fruit"
    with pytest.raises(DataError, match='class "food" of words') as error:
        all_classes_prompt(dataset)
    assert error.value.kind == "words"
    for number in (0, 4):
        with pytest.raises(DataError, match=f"no class {number}"):
            oracle_prompt(dataset, [number])


def test_sentences() -> None:
    dataset = Words("circle", "heart", "tea cup", "cup", sentences=True, add_missing=True)
    prompt = caption_prompt(dataset, "a red circle and two blue hearts on grass", [1, 2])
    assert prompt.text == "a red circle and two blue hearts on grass"
    assert prompt.objects == {1: ("red circle",), 2: ("two blue hearts",)}
    assert prompt.supports == ("grass",)
    prompt = caption_prompt(dataset, "A cup, and a tea cup (old) on sand", [1, 3, 4])
    assert prompt.text == "A cup, and a tea cup old on sand, circle"
    assert places(prompt) == ({1: (9,), 3: (4, 5, 6), 4: (1,)}, [(8,)], set())
    # Two classes in one run of words: neither is a part of the other.
    prompt = caption_prompt(dataset, "a heart circle on a red cup", [1, 2, 4])
    assert prompt.objects == {1: ("circle",), 2: ("heart",), 4: ("red cup",)}
    assert sentence_prompt(dataset, "", [2]).text == "heart"
    assert caption_prompt(dataset, "sky, (circle), sea", [1], reference=True).text == "sky, circle"


def test_captions_of_scenes() -> None:
    dataset = open_dataset("scenes", count=40, seed=7)
    for item in dataset.items:
        caption = dataset.caption(item)
        assert caption is not None
        things = {dataset.classes.index(ClassName(t.shape, (t.shape,))): t for t in dataset.scene(item).objects}
        assert set(things) == set(present_classes(dataset.label(item)))
        prompt = caption_prompt(dataset, caption, tuple(things))
        assert prompt.text == caption
        assert {number: thing.name.split() for number, thing in things.items()} == meant(prompt)[0]
        assert [" ".join(words) for words in meant(prompt)[1]] == [caption.rsplit(" ", 1)[1]]


def test_caption_files(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    expected = {"2007_000033": "aeroplane, sky", "frankfurt_000000_000294_leftImg8bit": "road"}
    names = list(expected)
    forms = (
        {f"{names[0]}.jpg": {"caption": "aeroplane, sky"}, f"{names[1]}.png": {"caption": "road", "more": [1]}},
        {names[0]: "aeroplane, sky", f"val/{names[1]}.png": "road"},
        [{"image": f"{names[0]}.jpg", "caption": "aeroplane, sky"}, {"file_name": names[1], "caption": "road"}],
    )
    for form in forms:
        path.write_text(json.dumps(form), encoding="utf-8")
        assert load_captions(path) == expected
        assert load_captions(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('"cat"', "unknown form"),
        ('["cat"]', "unknown form"),
        ("{}", "no captions"),
        ("[]", "no captions"),
        ('{"a.jpg": {"text": "cat"}}', "'a.jpg': None"),
        ('{"a.jpg": ["cat"]}', "without text"),
        ('[{"caption": "cat"}]', "without a file name"),
        ('{"a.jpg": "cat", "a.png": "dog"}', "two different captions for a"),
    ],
)
def test_caption_files_in_unknown_forms(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_captions(path)
    assert "captions.json" in str(error.value)


def test_a_caption_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json is missing") as error:
        load_captions(tmp_path / "nowhere.json")
    assert error.value.kind == "missing"
