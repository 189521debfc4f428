"""Phrases of a prompt: which words they mean, and what is said and suggested where they mean none."""

from __future__ import annotations

import random

import pytest

from goca_core.words.match import PhraseError
from goca_core.words.text import STOP_WORDS
from goca_core.words.word_map import label_of, parse_phrases, resolve

from .toy_words import parts_of, texts, words_of


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("wooden-table", "woodentable"),
        ("wooden table", "woodentable"),
        ("wooden", "wooden"),
        ("table", "table"),
        ("man's", "man's"),
        ("man", "man"),
        ("MAN’S HAT", "man'shat"),
        ("  hat,  wooden", "hatwooden"),
    ],
)
def test_punctuation_case_and_spaces_do_not_matter(phrase: str, expected: str) -> None:
    words = words_of("The man's hat, wooden-table")
    assert texts(words, words.find(phrase)) == expected


@pytest.mark.parametrize("phrase", ["book", "shelf", "ice", "books helf"])
def test_a_part_of_a_word_is_never_found(phrase: str) -> None:
    with pytest.raises(PhraseError, match="is not in the prompt"):
        words_of("bookshelf, nice rink").find(phrase)


def test_a_whole_word_of_a_longer_name_is_found() -> None:
    words = words_of("ice rink")
    assert texts(words, words.find("ice")) == "ice"


def test_a_repeated_phrase_pools_all_occurrences_and_a_number_chooses_one() -> None:
    words = words_of("cat, red cat, red cat")
    first, second, third = (w.positions for w in words.words if w.text == "cat")
    assert words.find("cat") == first + second + third
    assert words.find("cat#1") == first
    assert words.find("cat #3") == third
    assert words.find("red cat#2")[1:] == third
    assert [w.occurrence for w in words.words if w.text == "cat"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("phrase", "said"), [("cat#3", 'no "cat#3".*2 times'), ("cat#0", 'no "cat#0"'), ("red cat#2", "once")]
)
def test_a_number_that_is_not_there_is_explained(phrase: str, said: str) -> None:
    with pytest.raises(PhraseError, match=said):
        words_of("cat, red cat").find(phrase)


def test_a_hash_that_the_prompt_really_says_is_no_number() -> None:
    words = words_of("room #2, room 5, c# poster, #7")
    assert texts(words, words.find("room #2")) == "room2"
    assert texts(words, words.find("room#2")) == "room2"
    assert texts(words, words.find("c#")) == "c"
    assert texts(words, words.find("#7")) == "7"
    assert words_of("room 2, room 5").find("room#2") == (4,)


def test_an_embedding_is_found_with_and_without_its_prefix() -> None:
    text = "a cat, embedding:easy_neg-v2 dog"
    words = words_of(text, embeddings=((7, 28),))
    vectors = words.find("embedding:easy_neg-v2")
    assert len(vectors) == 3
    assert words.find("easy_neg-v2") == vectors
    assert words.find("easy_neg-v2 dog") == (*vectors, vectors[-1] + 1)
    assert {words.pieces[p].kind for p in vectors} == {"embedding"}
    assert words.rest(["cat"]) == ["embedding:easy_neg-v2", "dog"]


def test_phrases_are_lines_and_commas_pool() -> None:
    assert parse_phrases("cat\n\n dog , puppy ,\r\nred\\, blue\n,\n") == [("cat",), ("dog", "puppy"), ("red, blue",)]
    assert parse_phrases(" \n") == []


def test_phrases_are_resolved_to_tokens() -> None:
    words = words_of("the cat and a dog with a puppy")
    cat, dogs = resolve("the cat\ndog, puppy", words)
    assert (cat.label, cat.parts, texts(words, cat.tokens)) == ("the cat", ("the cat",), "cat")
    assert (dogs.label, dogs.parts, texts(words, dogs.tokens)) == ("dog, puppy", ("dog", "puppy"), "dogpuppy")
    assert texts(words, words.find("the cat")) == "thecat"
    assert texts(words, resolve("the", words)[0].tokens) == "the"
    assert texts(words, resolve("the cat", words, stop="")[0].tokens) == "thecat"
    overlapping = resolve("dog with a puppy\npuppy", words)
    assert set(overlapping[1].tokens) < set(overlapping[0].tokens)


@pytest.mark.parametrize(
    "phrase",
    [
        "cat\\, dog",
        "cat\\, dog, puppy",
        "\\,cat\\,, dog",
        "cat\\\\, dog",
        "cat\\ , dog",
        "cat, dog\\",
        "(cat\\, dog:1.2)",
    ],
)
def test_a_label_reads_as_the_phrase_that_it_is_of(phrase: str) -> None:
    words = words_of("a cat, dog and a puppy, (cat, dog:1.2)")
    (found,) = resolve(phrase, words)
    assert resolve(found.label, words) == [found]
    assert label_of(found.parts) == found.label


def test_the_label_of_a_comma_that_belongs_to_the_phrase() -> None:
    words = words_of("a cat, dog and a puppy")
    one, two = resolve("cat\\, dog\ncat, puppy", words)
    assert (one.label, one.parts) == ("cat\\, dog", ("cat, dog",))
    assert (two.label, two.parts) == ("cat, puppy", ("cat", "puppy"))
    assert label_of(("cat\\", "dog\\")) == "cat\\ , dog\\"


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("(red circle:1.2)", "redcircle"),
        ("((red:1.1) circle : -.5 )", "redcircle"),
        ("(circle:nan)", "circlecircle"),
        ("(circle:1e-3)#2", "circle"),
        ("(circle#2:1.2)", "circle"),
        ("(the circle", "thecircle"),
        ("circle:1.2)", "circlecircle"),
        ("(16:9)", "169"),
        ("(embedding:easy:1.2)", "[embedding]"),
    ],
)
def test_a_phrase_may_have_weights(phrase: str, expected: str) -> None:
    text = "a red circle, 16:9, the circle, embedding:easy"
    words = words_of(text, embeddings=((32, 46),))
    found = words.find(phrase)
    kinds = {words.pieces[p].kind for p in found}
    assert kinds == {"embedding"} if expected == "[embedding]" else texts(words, found) == expected


def test_weights_that_a_prompt_has_as_words_are_words() -> None:
    words = words_of("a (cat:1.2) and a cat")
    assert len(words.find("(cat:1.2)")) == 3 and len(words.find("cat")) == 2
    with pytest.raises(PhraseError, match=r'^"\(cat:sleepy\)" is not in the prompt'):
        words.find("(cat:sleepy)")


@pytest.mark.parametrize(
    ("phrase", "meant"),
    [
        ("circle red", "red circle"),
        ("Circle RED", "red circle"),
        ("(circle red:1.2)", "red circle"),
        ("circle red#2", "red circle"),
        ("dog brown", "brown shaggy dog"),
        ("brown dog big", "big brown shaggy dog"),
        ("table wooden", "wooden-table"),
        ("night stars", "stars night"),
        ("cat on mat", "cat on a mat"),
        ("brown mat", "brown"),
        ("circle cat", "circle"),
        ("cat circle", "circle"),
        ("zebra quux", ""),
        ("red red circle", "a red circle"),
    ],
)
def test_another_order_is_suggested(phrase: str, meant: str) -> None:
    words = parts_of("a red circle, a cat on a mat, a big brown shaggy dog, wooden-table, stars", "night")
    with pytest.raises(PhraseError) as caught:
        words.find(phrase)
    assert ("did you mean" in str(caught.value)) == bool(meant), caught.value
    assert str(caught.value).endswith(f'did you mean "{meant}"?' if meant else "."), caught.value


@pytest.mark.parametrize(
    ("phrases", "said"),
    [
        ("", "There is no phrase"),
        (" \n,", "There is no phrase"),
        ("cat\nCAT", "given twice"),
        ("cat\ncat#1", "mean the same words"),
        ("!!", "contains no word"),
        ("bird", '"bird" is not in the prompt, whose words are: red, cat, big, dog, cat#2'),
        ("cta", r'did you mean "cat"\?'),
        ("red cot", r'did you mean "red cat"\?'),
    ],
)
def test_every_error_is_one_sentence(phrases: str, said: str) -> None:
    words = words_of("a red cat and a big dog, cat")
    words = words if phrases != "cat\ncat#1" else words_of("a cat")
    with pytest.raises(PhraseError, match=said) as caught:
        resolve(phrases, words)
    assert "\n" not in str(caught.value)
    assert str(caught.value)[-1] in ".?"


def test_a_long_prompt_is_not_listed_whole() -> None:
    with pytest.raises(PhraseError) as caught:
        words_of(" ".join(f"word{n}" for n in range(90))).find("zebra")
    assert "word39, …" in str(caught.value)
    assert "word40" not in str(caught.value)


@pytest.mark.parametrize("phrase", ["x" * 100_000, "cat " * 50_000, "cat#" + "9" * 5_000, "red " + "#1" * 5_000])
def test_input_of_any_length_is_answered_in_one_short_sentence(phrase: str) -> None:
    for prompt in ("a red cat", "a " + "cat" * 50_000):
        with pytest.raises(PhraseError, match="is not in the prompt") as caught:
            words_of(prompt).find(phrase)
        assert len(str(caught.value)) < 300


def test_any_run_of_words_is_found_where_it_stands() -> None:
    rng = random.Random(0)
    vocabulary = ["cat", "red", "Table", "naïve", "猫", "🙂", "man's", "one-two", "35mm", "the", "bookshelf"]
    for _ in range(200):
        chosen = [rng.choice(vocabulary) for _ in range(rng.randint(1, 12))]
        words = words_of("".join(w + rng.choice([" ", ", ", "\n", " - "]) for w in chosen))
        spoken = [i for i, w in enumerate(words.words) if w.keys]
        start = rng.randrange(len(spoken))
        run = spoken[start : rng.randint(start + 1, len(spoken))]
        phrase = " ".join(words.words[i].text for i in run)
        assert {p for i in run for p in words.words[i].positions} <= set(words.find(phrase))
        for other in words.rest([phrase]):
            assert set(words.find(other)).isdisjoint(words.find(phrase))
        named = set(words.content(stop=()))
        assert set(words.content()) <= named
        assert named.isdisjoint((*words.special, *words.pad))
        assert {"a", "the"} <= STOP_WORDS
