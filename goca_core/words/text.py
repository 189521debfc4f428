"""Split text of any script into words, fold words for comparison, and list the words that name nothing."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

EMBEDDING = "embedding:"

STOP_WORDS = frozenset({"a", "an", "the", "and"})
"""Words that are not content, like punctuation: the normalisation over the words of a prompt skips them."""

FUNCTION_WORDS = STOP_WORDS | frozenset(
    """
    above across against along alongside among around as at before behind below beneath beside besides between beyond
    but by during except for from in inside into is are was were be being has have having it its near next nor of off
    on onto or out outside over past that their then there these this those through to together toward towards under
    underneath up upon via where which while who whose with within without
    """.split()  # noqa: SIM905
)
"""Words between the things that a prompt names. Automatic background phrases are split at them."""

TIES = frozenset("-_'’\u2010\u2011")
"""Signs that make one thing of the words beside them when no space is between, as in wooden-table or long_hair."""

# English endings are one word each, because CLIP's tokenizer splits there too: "man's" is found whole or as "man".
_ENDING = re.compile(r"['’](?:s|t|re|ve|m|d|ll)(?![^\W_])", re.IGNORECASE)

# Scripts without spaces between words: each character is a word, or nothing inside a sentence could be found.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),  # Thai, Lao, Myanmar, Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),  # kana and iteration marks
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
# Characters that nobody sees: the soft hyphen, joiners, marks of direction and variation selectors. Tags are none of
# them, because they tell flags apart.
_UNSEEN = (0x00AD, 0x034F, 0x061C, *range(0x180B, 0x1810), *range(0x200C, 0x2010), *range(0x202A, 0x202F))
_UNSEEN += (*range(0x2060, 0x2070), *range(0xFE00, 0xFE10), 0xFEFF, *range(0xE0100, 0xE01F0))
# The zero-width space is where a word ends.
_VISIBLE: dict[int, str] = {**dict.fromkeys(_UNSEEN, ""), 0x200B: " "}


def visible(text: str) -> str:
    """A text without the characters that nobody sees.

    >>> visible("ca\\u00adt")
    'cat'
    """
    return text.translate(_VISIBLE)


def fold(text: str) -> str:
    """Normalise the spelling of words for comparison: composed, case-folded, straight apostrophes, no invisible characters.

    >>> fold("Cat’s")
    "cat's"
    """
    composed = unicodedata.normalize("NFC", visible(text))
    return unicodedata.normalize("NFC", composed.casefold()).replace("’", "'")


@lru_cache(maxsize=8192)
def fold_words(text: str) -> tuple[str, ...]:
    """The folded words of a text, without punctuation.

    >>> fold_words("A red cat!")
    ('a', 'red', 'cat')
    """
    return tuple(fold(text[a:b]) for a, b in split_words(text) if _sort(text[a]) != "." or _ENDING.match(text, a))


def split_words(text: str) -> list[tuple[int, int]]:
    """Spans of the words and of the punctuation of a text, in order; consecutive punctuation is one span.

    Letters and digits together form a word. An emoji is a separate word. Characters that nobody sees belong to what is
    before them, and are no words.

    >>> split_words("a cat!")
    [(0, 1), (2, 5), (5, 6)]
    """
    spans, i = [], 0
    while i < len(text):
        sort = _sort(text[i])
        ending = _ENDING.match(text, i)
        if sort == " ":
            i += 1
            continue
        if ending:
            j = ending.end()
        elif sort == "e":
            j = _emoji_end(text, i)
        elif sort == "w" and _unspaced(text[i]):
            j = i + 1
            while j < len(text) and unicodedata.category(text[j])[0] == "M":
                j += 1
        else:
            j = i + 1
            while j < len(text) and (_same_run(sort, text[j]) or not visible(text[j])):
                j += 1
        while j < len(text) and not visible(text[j]):
            j += 1
        spans.append((i, j))
        i = j
    return spans


def _same_run(sort: str, char: str) -> bool:
    return _sort(char) == sort and not (sort == "w" and _unspaced(char))


@lru_cache(maxsize=4096)
def _sort(char: str) -> str:
    """ "w" for a letter, digit or mark, "e" for an emoji or pictograph, " " for what nobody sees, "." for all else."""
    if not visible(char).strip():
        return " "
    category = unicodedata.category(char)
    if category[0] in "LNM":
        return "w"
    # Below U+2300 the category holds ©, ®, ° and ™, which count as punctuation in a prompt.
    return "e" if category == "So" and ord(char) >= 0x2300 else "."


@lru_cache(maxsize=4096)
def _unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)


def _emoji_end(text: str, i: int) -> int:
    """Where the emoji at `i` ends, including its variation, skin tone, tags, joined emojis or second letter of a flag."""

    def flag(k: int) -> bool:
        return k < len(text) and 0x1F1E6 <= ord(text[k]) <= 0x1F1FF

    j = i + 2 if flag(i) and flag(i + 1) else i + 1
    while j < len(text):
        code = ord(text[j])
        if unicodedata.category(text[j])[0] == "M" or 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:
            j += 1
        elif text[j] == "\u200d" and j + 1 < len(text) and _sort(text[j + 1]) == "e":
            j += 2
        else:
            break
    return j
