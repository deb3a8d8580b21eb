"""The family `compare`, with questions such as "Which is larger, 9.11 or 9.9?".

The steps write both numbers with the same number of decimals, then compare them digit by digit: 9.11 9.90 9=9 1<9.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family

Pair = tuple[str, str]
"""Two different decimals as text."""

_LARGEST_WHOLE = 20
_SAME_WHOLE = 0.75  # share of pairs that differ behind the point only

_WORDINGS = ("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?")


def pad_decimals(pair: Pair) -> Pair:
    """Pad two numbers with zeros to the same number of decimals, for example ("9.11", "9.9") -> ("9.11", "9.90")."""
    a, b = pair
    longest = max(len(a) - a.index("."), len(b) - b.index("."))
    return a + "0" * (longest - len(a) + a.index(".")), b + "0" * (longest - len(b) + b.index("."))


def comparison_sign(x: int, y: int) -> str:
    """Return the sign `<`, `=` or `>` for two numbers."""
    return "<" if x < y else ">" if x > y else "="


def comparison_steps(pair: Pair) -> list[str]:
    """Return the steps of a comparison, for example ["9.11 9.90", "9=9", "1<9"].

    The first step writes both numbers, padded to the same number of decimals. The next steps compare the whole parts
    and then the decimals, until two digits differ.
    """
    a, b = pad_decimals(pair)
    steps = [f"{a} {b}"]
    for x, y in zip(_parts(a), _parts(b), strict=True):
        sign = comparison_sign(int(x), int(y))
        steps.append(f"{x}{sign}{y}")
        if sign != "=":
            break
    return steps


def _parts(number: str) -> list[str]:
    """Split a number into its whole part and its single decimals, for example "12.34" -> ["12", "3", "4"]."""
    whole, _, decimals = number.partition(".")
    return [whole, *decimals]


def pair_key(pair: Pair) -> str:
    """Return the key that identifies a pair of numbers. The order of the two numbers does not change the key."""
    return "compare " + " ".join(sorted(pair))


def larger_number(pair: Pair) -> str:
    """Return the larger of two decimal numbers, as text."""
    return pair[0] if comparison_steps(pair)[-1].count(">") else pair[1]


def _sample(random: Random, difficulty: Mapping[str, int]) -> Pair:
    while True:
        whole = random.randrange(_LARGEST_WHOLE + 1)
        other = whole if random.random() < _SAME_WHOLE else random.randrange(_LARGEST_WHOLE + 1)
        pair = f"{whole}.{_decimals(random, difficulty)}", f"{other}.{_decimals(random, difficulty)}"
        first, second = pad_decimals(pair)
        if first != second:
            return pair


def _decimals(random: Random, difficulty: Mapping[str, int]) -> str:
    """Draw one or more random digits. The last digit is never 0."""
    count = random.randint(1, difficulty["decimals"])
    return f"{10 * random.randrange(10 ** (count - 1)) + random.randint(1, 9):0{count}d}"


def _question(pair: Pair, random: Random) -> str:
    return random.choice(_WORDINGS).format(a=pair[0], b=pair[1])


def _corrupt_step(step: str, random: Random) -> str:
    if " " in step:
        return step[:-1] + str((int(step[-1]) + random.randint(1, 9)) % 10)
    sign = next(each for each in step if each in "<=>")
    return step.replace(sign, random.choice("<=>".replace(sign, "")))


COMPARE = Family[Pair](
    name="compare",
    thinking_helps=False,
    difficulty={"decimals": Difficulty("most digits behind the point", 2, 1, 8)},
    sample=_sample,
    key=pair_key,
    question=_question,
    answer=larger_number,
    steps=lambda pair, random: comparison_steps(pair),
    recheck=lambda pair: comparison_steps((pair[1], pair[0])),
    corrupt_step=_corrupt_step,
)
