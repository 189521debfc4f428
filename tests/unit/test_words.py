"""Words and chunks of a prompt, and what they are called."""

from __future__ import annotations

import dataclasses
import json

import pytest

from goca_core.words.build import Token, build
from goca_core.words.match import PhraseError
from goca_core.words.text import fold_words, split_words
from goca_core.words.word_map import Phrase, WordMap, WordMapError, resolve

from .toy_words import LENGTH, parts_of, texts, words_of


def pieces(text: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red  cat", ["a", "red", "cat"]),
        ("cat,dog.", ["cat", ",", "dog", "."]),
        ("wooden-table", ["wooden", "-", "table"]),
        ("long_hair", ["long", "_", "hair"]),
        ("man's dogs' don’t l'eau", ["man", "'s", "dogs", "'", "don", "’t", "l", "'", "eau"]),
        ("1girl 35mm 3.5", ["1girl", "35mm", "3", ".", "5"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("一只猫。", ["一", "只", "猫", "。"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("고양이 кот", ["고양이", "кот"]),
        ("🙂🙂!", ["🙂", "🙂", "!"]),
        ("👩‍👩‍👧 🇯🇵🇫🇷 ❤️ 👍🏽", ["👩‍👩‍👧", "🇯🇵", "🇫🇷", "❤️", "👍🏽"]),
        ("Nike™ 35°", ["Nike", "™", "35", "°"]),
        ("the man 's 'solid", ["the", "man", "'s", "'", "solid"]),
        ("a\ncat\tb\u3000c", ["a", "cat", "b", "c"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_text_is_cut_into_words(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_folding_ignores_case_composition_and_curly_apostrophes() -> None:
    assert fold_words("CAFÉ") == fold_words("cafe\u0301")
    assert fold_words("Man’s") == fold_words("man's")
    assert fold_words(" !,. ") == ()


def test_a_word_owns_all_of_its_pieces() -> None:
    words = words_of("a photograph of a cat")
    assert words.find("photograph") == (2, 3, 4)
    assert words.find("Photograph!") == (2, 3, 4)
    assert words.special == (0, 8)
    assert words.pad == tuple(range(9, LENGTH))


def test_text_without_tokens_is_no_word() -> None:
    text = "cat embedding:none dog"
    tokens = [Token(0, 1, "cat", "word", 0, 3), Token(1, 2, "dog", "word", 19, 22)]
    words = build(text, text, "toy", 2, tokens)
    assert [w.text for w in words.words] == ["cat", "dog"]
    assert words.chunks() == ((0,), (1,))
    assert words.rest(["cat"]) == ["dog"]


def test_a_token_may_belong_to_two_words_and_to_none() -> None:
    words = build("🙂! x", "🙂! x", "toy", 2, [Token(0, 1, "🙂!", "word", 0, 2), Token(1, 2, "", "word", 3, 3)])
    assert [w.positions for w in words.words] == [(0,), (0,)]
    assert (words.pieces[0].word, words.pieces[1].kind) == (0, "other")


def test_a_break_ends_a_word() -> None:
    words = words_of("redcat")
    assert len(words.words) == 1
    tokens = [Token(0, 1, "red", "word", 0, 3), Token(1, 2, "cat", "word", 3, 6)]
    words = build("(red)cat", "redcat", "toy", 2, tokens, breaks=(0, 3, 6))
    assert words.find("cat") == (1,)


def test_content_leaves_out_punctuation_and_stop_words() -> None:
    words = words_of("a red cat and the dog, on an oak.")
    assert texts(words, words.content()) == "redcatdogonoak"
    assert texts(words, words.content(stop="a, an, the, and on")) == "redcatdogoak"
    assert texts(words, words.content(stop=())) == "aredcatandthedogonanoak"
    assert {w.text for w in words.words if not w.content} == {"a", "and", "the", ",", "an", "."}


def test_chunks_are_the_things_that_the_prompt_names() -> None:
    words = words_of("a red cat sitting on a wooden-table, next to the man's hat\nblue sky")
    named = ["".join(words.plain[words.words[c[0]].start : words.words[c[-1]].end]) for c in words.chunks()]
    assert named == ["red cat sitting", "wooden-table", "man's hat", "blue sky"]


@pytest.mark.parametrize("sign", ["-", "_", "'", "’", "\u2010", "\u2011"])
def test_signs_that_tie_words(sign: str) -> None:
    """Between two words without a space; nowhere else."""

    def named(text: str) -> list[str]:
        words = words_of(text)
        return [words.plain[words.words[c[0]].start : words.words[c[-1]].end] for c in words.chunks()]

    tied = f"wooden{sign}table"
    assert named(tied) == [tied]
    assert named(f"big {tied}, chair") == [f"big {tied}", "chair"]
    assert named(f"wooden {sign} table") == named(f"wooden{sign} table") == ["wooden", "table"]
    assert named(f"{sign} wooden {sign}") == ["wooden"]
    assert named(f"{sign}wooden") == ["wooden"] and named(f"wooden{sign}") == ["wooden"]
    assert named("cat,dog.bird") == ["cat", "dog", "bird"]


def test_the_rest_shares_no_token_with_the_phrases() -> None:
    words = words_of("a red cat on a wooden table, sky, a cat, grass, sky")
    assert words.rest(["red cat"]) == ["wooden table", "sky", "cat#2", "grass"]
    assert words.rest(resolve("cat\ntable", words)) == ["sky", "grass"]
    assert words.rest([]) == ["red cat", "wooden table", "sky", "cat#2", "grass"]
    for phrase in words.rest(["red cat"]):
        assert set(words.find(phrase)).isdisjoint(words.find("red cat"))


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("Masterpiece, cat, masterpiece", "Masterpiece", "masterpiecemasterpiece"),
        ("wooden-table, cat, wooden table", "wooden-table", "woodentablewoodentable"),
        ("man's hat, cat, man’s hat", "man's hat", "man'shatman’shat"),
        ("café, cat, cafe\u0301", "café", "cafécafe\u0301"),
        ("STRASSE, cat, Straße", "STRASSE", "strassestraße"),
    ],
)
def test_a_thing_in_several_spellings_is_one_of_the_rest(text: str, label: str, expected: str) -> None:
    words = words_of(text)
    (found,) = words.rest_phrases(["cat"])
    assert (found.label, texts(words, found.tokens)) == (label, expected)
    assert words.rest(["cat"]) == [label] and words.find(label) == found.tokens


@pytest.mark.parametrize(
    ("parts", "typed", "expected"),
    [
        (("Image", "s", ", cat"), "Image(s), cat", ["Image s"]),
        (("stars", "night, cat"), "((stars))night, cat", ["stars night"]),
        (("un", "happy", " dog, cat"), "un(happy:1.2) dog, cat", ["un happy dog"]),
        (("l", "'eau", ", cat"), "l('eau), cat", ["l'eau"]),
        (("man", "'s hat, cat"), "(man:1.2)'s hat, cat", ["man's hat"]),
        (("猫", "犬", ", cat"), "猫(犬), cat", ["猫犬"]),
        (("red", " circle", ", cat"), "(red:1.2) (circle), cat", ["red circle"]),
        (("a red circle", "blue sky", ", cat"), "(a red circle:1.2)(blue sky:0.8), cat", ["red circle", "blue sky"]),
        (("red", "blue", ", cat"), "((red))(blue), cat", ["red", "blue"]),
        (("red", "blue", "green", ", cat"), "(red:1.1)((blue:2))(green:-1), cat", ["red", "blue", "green"]),
        # The words between such brackets are other words elsewhere.
        (
            ("circle", "blue, red", "circle, cat"),
            "(circle)(blue), red(circle), cat",
            ["circle#1", "blue", "red circle"],
        ),
    ],
)
def test_the_rest_of_a_prompt_with_brackets(parts: tuple[str, ...], typed: str, expected: list[str]) -> None:
    words = parts_of(*parts, text=typed)
    found = words.rest_phrases(["cat"])
    assert [phrase.label for phrase in found] == expected
    for phrase in found:
        assert words.find(phrase.parts[0]) == phrase.tokens


def test_what_shares_its_tokens_is_named_once() -> None:
    tokens = [Token(0, 1, "🙂,🙃", "word", 0, 3), Token(1, 2, "cat", "word", 5, 8)]
    words = build("🙂,🙃, cat", "🙂,🙃, cat", "toy", 2, tokens)
    assert words.rest_phrases(["cat"]) == [Phrase("🙂", ("🙂",), (0,))]


def test_repeats_of_which_one_is_in_a_longer_chunk_stay_apart() -> None:
    words = words_of("red cat, Cat, cat, dog, dog")
    assert words.rest_phrases(["red"]) == [
        Phrase("Cat#2", ("Cat#2",), words.find("cat#2")),
        Phrase("cat#3", ("cat#3",), words.find("cat#3")),
        Phrase("dog", ("dog",), words.find("dog")),
    ]


def test_a_prompt_of_brackets_alone_takes_no_time() -> None:
    for typed in (")" * 50_000, "(" * 50_000, ":" * 50_000, ")(" * 25_000):
        assert parts_of("cat", text=typed).chunks() == ((0,),)


def test_each_content_word_is_a_phrase() -> None:
    words = words_of("a Cat, the red cat-house, embedding:x,y cat 🙂", embeddings=((26, 39),))
    assert [phrase.label for phrase in words.each()] == [
        *("Cat", "red", "cat#2", "house", "embedding:x\\,y", "cat#3", "🙂"),
    ]
    for phrase in words.each():
        assert resolve(phrase.label, words) == [phrase]
    assert words_of("a, the!").each() == []


def test_words_that_share_a_token_are_one_phrase() -> None:
    cuts = [(0, 2), (2, 3), (3, 5), (6, 7), (6, 8), (7, 9), (10, 13), (13, 14), (14, 15)]
    text = "红色的红色 一只猫 🙂,🙂!a"
    tokens = [Token(n, n, text[a:b], "word", a, b) for n, (a, b) in enumerate(cuts)]
    words = build(text, text, "toy", len(tokens), tokens)
    assert [(phrase.label, phrase.tokens) for phrase in words.each()] == [
        ("红色", (0, 2)),
        ("的", (1,)),
        ("红色#2", (2,)),
        ("一只猫", (3, 4, 5)),
        ("🙂\\,🙂", (6,)),
    ]
    for phrase in words.each():
        assert resolve(phrase.label, words) == [phrase]
    assert words.find("红色的") == (0, 1) and words.find("猫") == (5,) and words.find("色") == (0, 2)


def test_an_empty_prompt_has_no_words() -> None:
    words = words_of("")
    assert words.words == ()
    assert words.content() == ()
    assert words.rest([]) == []
    assert words.describe() == "0 words in 0 of 400 tokens (toy)"
    with pytest.raises(PhraseError, match="has no words"):
        words.find("cat")


def test_another_length_is_refused() -> None:
    words = words_of("cat")
    words.check(LENGTH)
    with pytest.raises(WordMapError, match=r"400 tokens but this one has 77: .* another one\.$"):
        words.check(77)


def test_each_word_has_a_name_of_its_own() -> None:
    words = words_of("a cat, red Cat and the CAFÉ cafe\u0301, dog")
    assert words.names() == ("a", "cat#1", ",#1", "red", "Cat#2", "and", "the", "CAFÉ#1", "cafe\u0301#2", ",#2", "dog")
    for word, name in zip(words.words, words.names(), strict=True):
        if word.keys:
            assert words.find(name) == word.positions
    assert words_of("").names() == ()


def test_the_table_is_in_columns() -> None:
    assert words_of("cat").describe().splitlines() == ["1 word in 1 of 400 tokens (toy)", "cat  1"]
    long = "pneumonoultramicroscopicsilicosis"
    lines = words_of(f"a cats {long}").describe().splitlines()[1:]
    assert lines[0] == "a" + " " * 23 + "  1  (not content)" and lines[1] == "cats" + " " * 20 + "  2"
    assert lines[2].startswith(f"{long}  3 4 5")
    # Two pieces are worth showing, parts of a character are not.
    tokens = [
        Token(0, 1, "photo", "word", 0, 5),
        Token(1, 2, "graph", "word", 5, 10),
        Token(2, 3, "\ufffd", "word", 11, 12),
    ]
    words = build("photograph 猫", "photograph 猫", "toy", 4, [*tokens, Token(3, 4, "\ufffd", "word", 11, 12)])
    assert [line.split()[1:] for line in words.describe().splitlines()[1:]] == [["0", "1", "(photo·graph)"], ["2", "3"]]


def test_the_table_names_what_to_type() -> None:
    lines = words_of("a photograph, cat cat").describe().splitlines()
    assert lines[0].startswith("4 words in 7 of 400 tokens")
    assert lines[1].endswith("(not content)")
    assert lines[2].split() == ["photograph", "2", "3", "4", "(phot·ogra·ph)"]
    assert lines[4].split() == ["cat#2", "7"]


def test_everything_goes_through_json() -> None:
    words = words_of("a cat, embedding:x café 🙂", embeddings=((7, 18),))
    assert WordMap.from_json(json.loads(json.dumps(words.to_json()))) == words
    phrase = Phrase("cat, dog", ("cat", "dog"), (1, 2))
    assert Phrase.from_json(json.loads(json.dumps(phrase.to_json()))) == phrase
    for part in (*words.words, *words.pieces[:9]):
        assert type(part).from_json(json.loads(json.dumps(part.to_json()))) == part
    with pytest.raises(dataclasses.FrozenInstanceError):
        words.length = 1  # type: ignore[misc]
