"""Which script a word is written in, by Unicode's names of its letters: `latin`, `cjk`, `cyrillic`, `hangul`, ..."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+")  # letters alone: numbers, signs and formulas have no language


def script_of(letter: str) -> str:
    """`a` -> "latin", `七` -> "cjk"; "" for what has no name."""
    return unicodedata.name(letter, "").partition(" ")[0].lower()


def count_scripts(text: str) -> Counter[str]:
    """How many words of a text are in each script; a word goes by its first letter."""
    return Counter(script_of(word[0]) for run in _WORD.findall(text) for word in _apart(run))


def script_share(text: str, script: str) -> float:
    """Share of the words that are in a script; 1 where there is no word at all: formulas are in every language."""
    found = count_scripts(text)
    return found[script] / found.total() if found else 1.0


def _apart(letters: str) -> list[str]:
    """Letters in a row cut where the script changes; scripts without spaces count each letter as a word."""
    words: list[str] = []
    for letter in letters:
        script = script_of(letter)
        if words and script_of(words[-1][0]) == script and script not in ("cjk", "hiragana", "katakana", "thai"):
            words[-1] += letter
        else:
            words.append(letter)
    return words
