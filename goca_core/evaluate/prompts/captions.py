"""The prompt of an image, and which of its words name which class.

The paper's benchmarks use captions from a language model, written as lists of nouns, and find the classes in them. Without
captions, a prompt names the classes of the ground truth, or all classes.
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
    """A prompt and its phrases.

    Phrases are in the syntax of `words.resolve`; several phrases of a class are joined by ", ". objects: class id -> phrases
    that are pooled. supports: phrases without a class, which form the background. lost: phrases whose tokens count for
    nothing, not even as content words; only the reference's way of finding words produces these. A class that has only
    lost phrases is not in `objects`.
    """

    text: str
    objects: Mapping[int, tuple[str, ...]]
    supports: tuple[str, ...]
    lost: tuple[str, ...] = ()


def present_classes(label: NDArray[np.int64]) -> tuple[int, ...]:
    """Ids of the classes in a label, ascending, without the background and IGNORE."""
    return tuple(int(value) for value in np.unique(label) if value > 0)


def oracle_prompt(dataset: Dataset, present: Iterable[int]) -> Prompt:
    """A prompt with the names of the present classes, and "background" if the data set names it."""
    names = _names(dataset, present)
    entities = [((name,), number) for number, name in names.items()]
    return _compose([*entities, *([((BACKGROUND,), None)] if dataset.background_word else [])])


def all_classes_prompt(dataset: Dataset) -> Prompt:
    """A prompt with the names of all classes. It may be longer than what a text encoder accepts at once."""
    return oracle_prompt(dataset, range(1, len(dataset.classes)))


def caption_prompt(dataset: Dataset, caption: str, present: Iterable[int], *, reference: bool = False) -> Prompt:
    """A prompt made from a caption: entities that name a present class are its objects, all others are background.

    caption: a list of nouns, with the parts of an object in parentheses; or a sentence, for data sets whose captions are
    sentences. present: ids of the classes in the label. An entity names a class by one of its words, singular or plural. Of
    a group that names several classes, only those names are kept. "background" and missing classes are appended where the
    data set says so.
    reference: lose the words that the reference implementation loses: those after a group with one entry, and the tokens of
    an entity whose text occurs earlier as part of another one.
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
    found = [(parts, next((n for n in map(class_of, parts) if n is not None), None)) for parts in entities.values()]
    if dataset.add_missing:
        # A set, because the reference appends the classes in the iteration order of a set.
        missing = set(numbers) - {number for _, number in found if number is not None}
        names = _names(dataset, missing)
        found += [((names[number],), number) for number in (missing if reference else names)]
    return _compose(found, reference)


def sentence_prompt(dataset: Dataset, caption: str, present: Iterable[int]) -> Prompt:
    """A prompt made from a sentence: the phrases that name a present class are its objects, all others are background."""
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
    """Load captions from a JSON file: file name of the image without its extension -> caption.

    The reference's format is {"2007_000033.jpg": {"caption": "..."}}. {"2007_000033": "..."} and
    [{"image": "2007_000033.jpg", "caption": "..."}] are accepted too. Raises DataError for any other format, an entry
    without text, or two captions for one image.
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
            f'The captions in {path} have an unknown format: expected {{"image.jpg": {{"caption": "..."}}}}.',
            "caption",
        )
    captions: dict[str, str] = {}
    for name, caption in pairs:
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DataError(
                f"The captions in {path} have an entry without a file name or without text: {name!r}: {caption!r}.",
                "caption",
            )
        key = PurePosixPath(name.replace("\\", "/")).name
        key = key.rsplit(".", 1)[0] if "." in key else key
        if captions.setdefault(key, caption) != caption:
            raise DataError(f"The file {path} has two different captions for {key}: keep one of them.", "caption")
    if not captions:
        raise DataError(f"The file {path} has no captions.", "caption")
    return captions


def _entries(dataset: Dataset, caption: str, reference: bool) -> list[tuple[str, Entity]]:
    """The entities of a caption, each with the text that identifies it; "background" is added if the data set names it."""
    ending = f", {BACKGROUND}" if dataset.background_word else ""
    if not reference:
        entities = [*split_list(caption), *([(BACKGROUND,)] if ending else [])]
        return [(", ".join(parts), parts) for parts in entities]
    entries = split_list_as_reference(caption.removesuffix(".").lower() + ending)
    # The reference takes "(car)" and "car" for two entities, and loses the tokens of the second.
    bare = [(entry, entry.replace("(", "").replace(")", "")) for entry in entries]
    return [(entry, tuple(text.split(", "))) for entry, text in bare]


def _compose(entities: list[tuple[Entity, int | None]], reference: bool = False) -> Prompt:
    """Join entities to a prompt, and find a phrase that matches each of them and nothing else."""
    text = ", ".join(", ".join(parts) for parts, _ in entities)
    words = Text(text)
    objects: dict[int, tuple[str, ...]] = {}
    supports: list[str] = []
    lost: list[str] = []
    start = 0
    for parts, number in entities:
        whole = ", ".join(parts)
        end = start + len(whole)
        phrase = words.phrase(start, end)
        if not phrase:
            pass  # only articles, which are neither an object nor content
        elif reference and text.find(whole) != start:
            lost.append(phrase)
        elif number is None:
            supports.append(phrase)
        else:
            objects[number] = (*objects.get(number, ()), phrase)
        start = end + 2
    return Prompt(text, objects, tuple(supports), tuple(lost))


def _names(dataset: Dataset, numbers: Iterable[int]) -> dict[int, str]:
    """A name for each class: its first word, or a later one where another class already has that word."""
    names: dict[int, str] = {}
    for number in sorted(set(numbers)):
        if not 0 < number < len(dataset.classes):
            raise DataError(f"The data set {dataset.name} has no class {number}.", "value")
        found = next((word for word in dataset.classes[number].synonyms if word not in names.values()), None)
        if found is None:
            raise DataError(
                f'The class "{dataset.classes[number].name}" of {dataset.name} has only words of other '
                "classes: give it a word of its own.",
                "words",
            )
        names[number] = found
    return names


def _bare(part: str) -> tuple[str, ...]:
    """The folded words of a part, without a leading article."""
    words = fold_words(part)
    return words[1:] if len(words) > 1 and words[0] in STOP_WORDS else words


def _spellings(name: ClassName) -> frozenset[tuple[str, ...]]:
    """The words of a class in singular and plural, folded by `fold_words`."""
    return frozenset(fold_words(form) for word in name.synonyms for form in (word, _plural(word)))


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
