"""The family `letters`, with questions such as "How many r in strawberry?".

The steps spell the word. Each step has a letter of the word, and the number of times that the counted letter has
occurred so far, as in `s0 t0 r1 a1 w1 b1 e1 r2 r3 y3`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from string import ascii_lowercase

from schoolhouse.tasks.school.family import Difficulty, Family
from schoolhouse.tasks.school.vocabulary import SPELLING_WORDS

Count = tuple[str, str]
"""A word and the letter to count in it."""

_CONSONANTS, _VOWELS = "bcdfghklmnprstvwz", "aeiou"

_ANY_LETTER, _REPEATED = 0.1, 0.5  # shares of any letters and of repeated letters: else "1" would be a good guess

_WORDINGS = (
    "How many {letter} in {word}?",
    "How often does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
)


def invented_word(random: Random, length: int) -> str:
    """Invent a word. Consonants and vowels alternate, and some letters are doubled."""
    word = ""
    while len(word) < length:
        letter = random.choice(_VOWELS if len(word) % 2 else _CONSONANTS)
        word += letter * random.choice((1, 1, 1, 2))
    return word[:length]


def tally(letters: Iterable[str], letter: str) -> list[str]:
    """Write each letter and how often `letter` has occurred up to this letter.

    For example, ("y", "r", "r") and "r" give ["y0", "r1", "r2"].
    """
    steps, count = [], 0
    for current in letters:
        count += current == letter
        steps.append(f"{current}{count}")
    return steps


def count_key(count: Count) -> str:
    """Return the key that identifies a problem. The key has the word and the letter to count."""
    return f"letters {count[0]} {count[1]}"


def _sample(random: Random, difficulty: Mapping[str, int]) -> Count:
    length = difficulty["length"]
    word = invented_word(random, length) if length else random.choice(SPELLING_WORDS)
    chance = random.random()
    if chance < _ANY_LETTER:
        return word, random.choice(ascii_lowercase)
    repeated = [letter for letter in word if word.count(letter) > 1] if chance < _ANY_LETTER + _REPEATED else []
    return word, random.choice(repeated or word)


def _question(count: Count, random: Random) -> str:
    return random.choice(_WORDINGS).format(word=count[0], letter=count[1])


def _corrupt_step(step: str, random: Random) -> str:
    count = int(step[1:])
    return f"{step[0]}{count - 1 if count and random.random() < 0.5 else count + 1}"


LETTERS = Family[Count](
    name="letters",
    thinking_helps=True,
    difficulty={"length": Difficulty("letters of an invented word (0: common words)", 0, 0, 20)},
    sample=_sample,
    key=count_key,
    question=_question,
    answer=lambda count: str(count[0].count(count[1])),
    steps=lambda count, random: tally(*count),
    recheck=lambda count: tally(reversed(count[0]), count[1]),
    corrupt_step=_corrupt_step,
)
