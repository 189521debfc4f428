"""Prompts for a picture, and which words of them mean which class.

The paper's benchmarks ask a language model for a caption that is a list of nouns, and take the classes from that; without
captions a prompt names the classes of the ground truth, or all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...words.text import STOP_WORDS, fold_words
from ..datasets.base import ClassName, DataError, Dataset
from ..datasets.files import read_json
from .lists import Entity, clean, split_list, split_list_as_reference
from .phrases import Text

BACKGROUND = "background"
_NAME_KEYS = ("image", "file_name", "file", "name", "key", "id")


@dataclass(frozen=True)
class Prompt:
    """What is encoded, and the phrases in it.

    Phrases are written for `words.resolve` and used as they are, several of a class joined by ", ". objects: class id ->
    phrases that are pooled. supports: phrases without a class, the background. lost: phrases whose tokens belong to nothing,
    not even to the content words; only the reference's way of finding words leaves such behind. A class whose phrases are
    all lost is in no objects.
    """

    text: str
    objects: Mapping[int, tuple[str, ...]]
    supports: tuple[str, ...]
    lost: tuple[str, ...] = ()


def present_classes(label: NDArray[np.int64]) -> tuple[int, ...]:
    """The classes that occur in a label, ascending, without the background and without pixels that do not count."""
    return tuple(int(value) for value in np.unique(label) if value > 0)


def oracle_prompt(dataset: Dataset, present: Iterable[int]) -> Prompt:
    """The names of the classes that the ground truth holds, and the background if the data set names it."""
    names = _names(dataset, present)
    things = [((name,), number) for number, name in names.items()]
    return _compose([*things, *([((BACKGROUND,), None)] if dataset.background_word else [])])


def all_classes_prompt(dataset: Dataset) -> Prompt:
    """The names of all classes: a prompt of any length."""
    return oracle_prompt(dataset, range(1, len(dataset.classes)))


def caption_prompt(dataset: Dataset, caption: str, present: Iterable[int], *, reference: bool = False) -> Prompt:
    """The entities of a caption; those that name a class of `present` are its objects, the others support.

    caption: a list of nouns, things with their parts in parentheses; a sentence for data sets whose captions are sentences.
    present: ids of the classes of the ground truth. A class is named by one of its words, in the singular or plural. Of a
    group that names several classes only those names are kept. The background and classes that are missing are appended
    where the data set says so. reference: lose words as the reference does: those after a group of one entry, and the
    tokens of an entity whose text occurs before it as part of another.
    """
    numbers = tuple(dict.fromkeys(present))
    if dataset.sentences and not reference:
        return sentence_prompt(dataset, caption, numbers)
    spellings = {number: _spellings(dataset.classes[number]) for number in sorted(numbers)}

    def class_of(part: str) -> int | None:
        words = fold_words(part) if reference else _bare(part)
        return next((number for number, known in spellings.items() if words in known), None)

    entities: dict[str, Entity] = {}
    for key, parts in _entries(dataset, caption, reference):
        named = [part for part in parts if class_of(part) is not None]
        entities.update({part: (part,) for part in named} if len(named) > 1 else {key: parts})
    things = [(parts, next((n for n in map(class_of, parts) if n is not None), None)) for parts in entities.values()]
    if dataset.add_missing:
        # A set, since the reference appends them in the order in which one gives its numbers.
        missing = set(numbers) - {number for _, number in things if number is not None}
        names = _names(dataset, missing)
        things += [((names[number],), number) for number in (missing if reference else names)]
    return _compose(things, reference)


def sentence_prompt(dataset: Dataset, caption: str, present: Iterable[int]) -> Prompt:
    """A caption in prose: what names a class is its object, with the words that belong to it; the other things support it."""
    text = clean(caption.replace("(", " ").replace(")", " "))
    if dataset.background_word:
        text = ", ".join(filter(None, (text, BACKGROUND)))
    numbers = sorted(set(present))
    objects = Text(text).classes({number: _spellings(dataset.classes[number]) for number in numbers})
    missing = [number for number in numbers if number not in objects]
    if missing and dataset.add_missing:
        text = ", ".join(filter(None, (text, *_names(dataset, missing).values())))
        objects = Text(text).classes({number: _spellings(dataset.classes[number]) for number in numbers})
    taken = [phrase for phrases in objects.values() for phrase in phrases]
    return Prompt(text, objects, tuple(Text(text).rest(taken)))


def load_captions(path: str | Path) -> Mapping[str, str]:
    """Captions by picture (the name of its file without the ending) from a JSON file.

    The reference's form is {"2007_000033.jpg": {"caption": "..."}}; {"2007_000033": "..."} and
    [{"image": "2007_000033.jpg", "caption": "..."}] are understood too. Raises DataError for any other form, an entry
    without text, or two captions for one picture.
    """
    path = Path(path)
    data = read_json(path)
    pairs: list[tuple[Any, Any]]
    if isinstance(data, dict):
        pairs = [(name, entry.get("caption") if isinstance(entry, dict) else entry) for name, entry in data.items()]
    elif isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
        pairs = [(next((e[k] for k in _NAME_KEYS if k in e), None), e.get("caption")) for e in data]
    else:
        raise DataError(
            f'The captions in {path} are in an unknown form: expected {{"picture.jpg": {{"caption": "..."}}}}.',
            "caption",
        )
    captions: dict[str, str] = {}
    for name, caption in pairs:
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DataError(
                f"The captions in {path} have an entry without a picture's name or without text: {name!r}: {caption!r}.",
                "caption",
            )
        key = PurePosixPath(name.replace("\\", "/")).name
        key = key.rsplit(".", 1)[0] if "." in key else key
        if captions.setdefault(key, caption) != caption:
            raise DataError(f"The captions in {path} have two different ones for {key}.", "caption")
    if not captions:
        raise DataError(f"There are no captions in {path}.", "caption")
    return captions


def _entries(dataset: Dataset, caption: str, reference: bool) -> list[tuple[str, Entity]]:
    """The entities of a caption under the text that tells them apart, with the background where the data set names it."""
    ending = f", {BACKGROUND}" if dataset.background_word else ""
    if not reference:
        things = [*split_list(caption), *([(BACKGROUND,)] if ending else [])]
        return [(", ".join(parts), parts) for parts in things]
    entries = split_list_as_reference(caption.removesuffix(".").lower() + ending)
    # To the reference "(car)" and "car" are two entities; the tokens of the second are then lost.
    bare = [(entry, entry.replace("(", "").replace(")", "")) for entry in entries]
    return [(entry, tuple(text.split(", "))) for entry, text in bare]


def _compose(things: list[tuple[Entity, int | None]], reference: bool = False) -> Prompt:
    """Put entities into one text, and find a phrase that means each of them alone."""
    text = ", ".join(", ".join(parts) for parts, _ in things)
    words = Text(text)
    objects: dict[int, tuple[str, ...]] = {}
    supports: list[str] = []
    lost: list[str] = []
    start = 0
    for parts, number in things:
        whole = ", ".join(parts)
        end = start + len(whole)
        phrase = words.phrase(start, end)
        if not phrase:
            pass  # nothing but articles: no object, and no content either
        elif reference and text.find(whole) != start:
            lost.append(phrase)
        elif number is None:
            supports.append(phrase)
        else:
            objects[number] = (*objects.get(number, ()), phrase)
        start = end + 2
    return Prompt(text, objects, tuple(supports), tuple(lost))


def _names(dataset: Dataset, numbers: Iterable[int]) -> dict[int, str]:
    """The first word of each class, or a later one where two classes have the same first word."""
    names: dict[int, str] = {}
    for number in sorted(set(numbers)):
        if not 0 < number < len(dataset.classes):
            raise DataError(f"The data set {dataset.name} has no class {number}.", "value")
        found = next((word for word in dataset.classes[number].synonyms if word not in names.values()), None)
        if found is None:
            raise DataError(
                f'The class "{dataset.classes[number].name}" of {dataset.name} has no word that is not another class\'s as '
                "well: give it one of its own.",
                "words",
            )
        names[number] = found
    return names


def _bare(part: str) -> tuple[str, ...]:
    """The words of a part without a leading article."""
    words = fold_words(part)
    return words[1:] if len(words) > 1 and words[0] in STOP_WORDS else words


def _spellings(name: ClassName) -> frozenset[tuple[str, ...]]:
    """The words of a class in singular and plural, as `fold_words` gives them."""
    return frozenset(fold_words(form) for word in name.synonyms for form in (word, _plural(word)))


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
