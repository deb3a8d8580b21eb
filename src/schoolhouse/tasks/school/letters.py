"""How many r in strawberry? Spelt and tallied: `s0 t0 r1 a1 w1 b1 e1 r2 r3 y3`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from string import ascii_lowercase

from schoolhouse.tasks.school.family import Difficulty, Family
from schoolhouse.tasks.school.vocabulary import SPELLING_WORDS

Count = tuple[str, str]
"""A word and the letter that is counted in it."""

_CONSONANTS, _VOWELS = "bcdfghklmnprstvwz", "aeiou"

_ANY_LETTER, _REPEATED = 0.1, 0.5  # shares of letters that may be missing, and that occur twice: else "1" is a fair bet

_WORDINGS = (
    "How many {letter} in {word}?",
    "How often does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
)


def invented_word(random: Random, length: int) -> str:
    """A word nobody knows, easy to say: consonants and vowels in turn, some letters doubled."""
    word = ""
    while len(word) < length:
        letter = random.choice(_VOWELS if len(word) % 2 else _CONSONANTS)
        word += letter * random.choice((1, 1, 1, 2))
    return word[:length]


def tally(letters: Iterable[str], letter: str) -> list[str]:
    """Each letter with the count so far: ("y", "r", "r"), "r" -> ["y0", "r1", "r2"]."""
    steps, count = [], 0
    for each in letters:
        count += each == letter
        steps.append(f"{each}{count}")
    return steps


def count_key(count: Count) -> str:
    """The key of a word and a letter."""
    return f"letters {count[0]} {count[1]}"


def _make(random: Random, dials: Mapping[str, int]) -> Count:
    length = dials["length"]
    word = invented_word(random, length) if length else random.choice(SPELLING_WORDS)
    chance = random.random()
    if chance < _ANY_LETTER:
        return word, random.choice(ascii_lowercase)
    repeated = [letter for letter in word if word.count(letter) > 1] if chance < _ANY_LETTER + _REPEATED else []
    return word, random.choice(repeated or word)


def _ask(count: Count, random: Random) -> str:
    return random.choice(_WORDINGS).format(word=count[0], letter=count[1])


def _slip(step: str, random: Random) -> str:
    tallied = int(step[1:])
    return f"{step[0]}{tallied - 1 if tallied and random.random() < 0.5 else tallied + 1}"


LETTERS = Family[Count](
    name="letters",
    pays=True,
    dials={"length": Difficulty("letters of an invented word (0: common words)", 0, 0, 20)},
    make=_make,
    key=count_key,
    ask=_ask,
    answer=lambda count: str(count[0].count(count[1])),
    steps=lambda count, random: tally(*count),
    recheck=lambda count: tally(reversed(count[0]), count[1]),
    corrupt_step=_slip,
)
