"""Words, phrases and chunks, with a toy text encoder: one token for every four characters of a word."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from goca_core.words.build import Token, build
from goca_core.words.match import PhraseError
from goca_core.words.text import STOP_WORDS, fold_words, split_words
from goca_core.words.word_map import Phrase, WordMap, WordMapError, label_of, parse_phrases, resolve

LENGTH = 400


def words_of(text: str, embeddings: tuple[tuple[int, int], ...] = (), breaks: tuple[int, ...] = ()) -> WordMap:
    """A word map as an encoder with a start token, short pieces, an end token and padding would give it."""
    tokens = [Token(0, -2, "", "start")]
    spans = [s for s in split_words(text) if not any(a <= s[0] < b for a, b in embeddings)]
    for span in sorted([*spans, *embeddings]):
        if span in embeddings:
            tokens += [Token(len(tokens) + k, -1, "", "embedding", *span) for k in range(3)]
            continue
        for start in range(span[0], span[1], 4):
            end = min(start + 4, span[1])
            tokens.append(Token(len(tokens), len(tokens), text[start:end].lower(), "word", start, end))
    tokens.append(Token(len(tokens), -3, "", "end"))
    tokens += [Token(i, -3, "", "pad") for i in range(len(tokens), LENGTH)]
    return build(text, text, "toy", LENGTH, tokens, breaks)


def texts(word_map: WordMap, positions: tuple[int, ...]) -> str:
    return "".join(word_map.pieces[p].text for p in positions)


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


def parts_of(*parts: str, text: str = "") -> WordMap:
    """A word map of parts between which words end without a space, as where brackets stood; ``text``: as typed."""
    tokens: list[Token] = []
    breaks, plain = [], "".join(parts)
    for part in parts:
        start = breaks[-1] if breaks else 0
        for a, b in split_words(part):
            tokens.append(Token(len(tokens), len(tokens), part[a:b], "word", start + a, start + b))
        breaks.append(start + len(part))
    return build(text or plain, plain, "toy", len(tokens), tokens, breaks)


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
