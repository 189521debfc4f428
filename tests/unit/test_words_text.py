"""The edges of splitting text into words and of finding phrases: scripts, emojis, repeats and long texts."""

from __future__ import annotations

import pytest

from goca_core.words.build import Token, build
from goca_core.words.match import PhraseError
from goca_core.words.text import fold, fold_words, split_words
from goca_core.words.word_map import parse_phrases, resolve

from .test_words import words_of


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize("char", "々〇ァヿㇰㇿ㐀䶿一豈กກကក𠀀")
def test_characters_at_the_edges_of_scripts_without_spaces(char: str) -> None:
    assert pieces(f"a{char}{char}b") == ["a", char, char, "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Flags are two letters of their own, from A to Z.
        ("🇦🇿🇿🇦", ["🇦🇿", "🇿🇦"]),
        ("🇦", ["🇦"]),
        ("🇦🙂", ["🇦", "🙂"]),
        ("🙂🇦", ["🙂", "🇦"]),
        ("🇦🈀", ["🇦", "🈀"]),
        # Skin colours, from the lightest to the darkest, and what follows them in the table.
        ("👍🏻👍🏿👍🐀", ["👍🏻", "👍🏿", "👍", "🐀"]),
        # Tags of a flag, from the first to the last.
        ("🏴\U000e0020\U000e007f🏴", ["🏴\U000e0020\U000e007f", "🏴"]),
        ("🏴\U000e0080", ["🏴", "\U000e0080"]),
        # Emojis are joined to emojis alone.
        ("👩\u200d👩", ["👩\u200d👩"]),
        ("👩\u200d", ["👩\u200d"]),
        ("👩\u200dx", ["👩\u200d", "x"]),
        # Technical signs are pictographs, other signs are punctuation, of which a run is one word.
        ("⌀⌀", ["⌀", "⌀"]),
        ("a... b!?", ["a", "...", "b", "!?"]),
        ("猫。。", ["猫", "。。"]),
        ("Nike™™", ["Nike", "™™"]),
    ],
)
def test_emojis_and_signs(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


UNSEEN = [
    *"\u00ad\u034f\u061c\u180b\u180e\u200c\u200d\u200f\u202a\u202e\u2060\u206f\ufe00\ufe0f\ufeff\U000e0100\U000e01ef"
]


@pytest.mark.parametrize("char", UNSEEN)
def test_invisible_characters_neither_glue_nor_split(char: str) -> None:
    assert pieces(f"ca{char}t") == [f"ca{char}t"]
    assert pieces(f"{char}cat{char} {char} {char}dog,{char}猫{char}犬©{char}cat🙂{char}!") == [
        *(f"cat{char}", "dog", f",{char}", f"猫{char}", "犬", f"©{char}", "cat", f"🙂{char}", "!"),
    ]
    assert pieces(char) == pieces(f" {char} ") == []
    assert fold(f"{char}ca{char}t{char}") == "cat"
    assert fold_words(f"re{char}d{char} the man's{char} hat") == ("red", "the", "man", "'s", "hat")
    words = words_of(f"a re{char}d {char} circle, wooden{char}-{char}table, man's{char} cat")
    assert words.find("red circle") == (2, 3, 4) and words.find("cat")
    assert [len(chunk) for chunk in words.chunks()] == [2, 2, 3]
    assert words_of("a red circle").find(f"re{char}d{char}{char}  circle") == (2, 3, 4)


def test_the_zero_width_space_is_a_space() -> None:
    words = words_of("a red\u200bcircle")
    assert pieces("a red\u200bcircle") == ["a", "red", "circle"]
    assert len(words.chunks()) == 1 and words.find("red circle") == words.find("red\u200bcircle")


def test_emojis_in_either_variation_are_the_same() -> None:
    assert fold("❤\ufe0f") == fold("❤") and fold("🏴\U000e0067\U000e007f") != fold("🏴")


def test_folding_a_word() -> None:
    assert fold("DON’T") == fold("don't") == "don't"
    assert fold("STRASSE") == fold("straße")


def test_occurrences_do_not_overlap() -> None:
    words = words_of("cat cat cat, cat")
    first, second, third, fourth = (word.positions[0] for word in words.words if word.keys)
    assert words.find("cat cat") == (first, second, third, fourth)
    assert words.find("cat cat#2") == (third, fourth)
    assert words_of("cat cat cat").find("cat cat") == (1, 2)
    with pytest.raises(PhraseError, match=r'the prompt has "cat cat cat" once\.$'):
        words.find("cat cat cat#2")


def test_a_longer_phrase_that_really_has_a_number() -> None:
    words = words_of("big room #2, big room 5")
    assert words.find("big room #2") == words.find("big room#2") == (1, 2, 4)


@pytest.mark.parametrize(("length", "told"), [(80, "x" * 80), (81, "x" * 79 + "…"), (200, "x" * 79 + "…")])
def test_phrases_are_quoted_up_to_eighty_letters(length: int, told: str) -> None:
    with pytest.raises(PhraseError, match=f'^"{told}" is not in the prompt'):
        words_of("a cat").find("x" * length)


@pytest.mark.parametrize(("count", "end"), [(2, "word1"), (40, "word39"), (41, "word39, …")])
def test_an_error_lists_up_to_forty_words(count: int, end: str) -> None:
    with pytest.raises(PhraseError, match=rf"{end}\.$"):
        words_of(" ".join(f"word{number}" for number in range(count))).find("zebra")


def test_phrases_may_be_read_beforehand() -> None:
    text, words = "cat, red\ndog\\, a", words_of("a red cat, dog, a bird")
    assert resolve(parse_phrases(text), words) == resolve(text, words)
    with pytest.raises(PhraseError, match=r"such as cat#2\.$"):
        resolve("bird\nbird#1", words)


def test_a_word_map_keeps_the_text_and_the_ids_of_its_tokens() -> None:
    tokens = [Token(0, 17, "red", "word", 0, 3), Token(1, 42, "cat", "word", 3, 6)]
    words = build("(red)cat", "redcat", "toy", 2, tokens, breaks=(0, 3, 6))
    assert (words.text, words.plain, words.encoder) == ("(red)cat", "redcat", "toy")
    assert [(piece.position, piece.token_id, piece.text) for piece in words.pieces] == [(0, 17, "red"), (1, 42, "cat")]
