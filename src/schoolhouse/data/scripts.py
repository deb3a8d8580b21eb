"""Find the script (writing system) of a word, such as `latin`, `cjk` or `cyrillic`, from the Unicode names of its
letters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_LETTERS = re.compile(r"[^\W\d_]+")  # numbers, signs and formulas have no language


def script_of(letter: str) -> str:
    """Return the script (writing system) of a letter, for example "latin" for `a` and "cjk" for `七`.

    Returns an empty string for a character without a Unicode name.
    """
    return unicodedata.name(letter, "").partition(" ")[0].lower()


def count_scripts(text: str) -> Counter[str]:
    """Count the words of a text in each script (writing system). The first letter of a word decides the script (writing
    system) of the word."""
    return Counter(script_of(word[0]) for run in _LETTERS.findall(text) for word in _split_by_script(run))


def script_share(text: str, script: str) -> float:
    """The fraction of the words of a text that are written in the writing system `script`.

    The fraction is 1 if the text has no words, because formulas belong to every language.
    """
    counts = count_scripts(text)
    return counts[script] / counts.total() if counts else 1.0


def _split_by_script(letters: str) -> list[str]:
    """Cut a sequence of letters into words at each change of script (writing system).

    In scripts that are written without spaces, each letter is a word.
    """
    words: list[str] = []
    for letter in letters:
        script = script_of(letter)
        if words and script_of(words[-1][0]) == script and script not in ("cjk", "hiragana", "katakana", "thai"):
            words[-1] += letter
        else:
            words.append(letter)
    return words
