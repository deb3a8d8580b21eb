"""The family `addition`: sums of two long numbers, added column by column from the units.

The steps of `3847 + 2965` are `7+5=12,2c1 4+6+1=11,1c1 8+9+1=18,8c1 3+2+1=6,6`. Each step adds the two digits of a
column and the carry. After the comma, each step writes the digit of the result, and `c1` if the column carries 1. The
last step writes the whole sum of its column after the comma.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, sum_key

Sum = tuple[int, int]


def column_step(a: str, b: str, carry: int) -> tuple[str, int]:
    """Return the step of a column and its carry, for example ("4", "6", 1) -> ("4+6+1=11,1c1", 1).

    Use `column_step` for all columns except the last column.
    """
    total = int(a) + int(b) + carry
    plus = "+1" if carry else ""
    if total < 10:
        return f"{a}+{b}{plus}={total},{total}", 0
    return f"{a}+{b}{plus}={total},{total - 10}c1", 1


def column_steps(a: int, b: int) -> list[str]:
    """Return the steps of a sum, starting with the units. The shorter number is padded with zeros."""
    first, second = str(a), str(b)
    width = max(len(first), len(second))
    *inner, last = zip(reversed(first.zfill(width)), reversed(second.zfill(width)), strict=True)
    steps, carry = [], 0
    for x, y in inner:
        step, carry = column_step(x, y, carry)
        steps.append(step)
    total = int(last[0]) + int(last[1]) + carry
    steps.append(f"{last[0]}+{last[1]}{'+1' if carry else ''}={total},{total}")
    return steps


def _sample(random: Random, difficulty: Mapping[str, int]) -> Sum:
    low = 10 ** (difficulty["digits"] - 1)
    return low + int(random.random() * 9 * low), low + int(random.random() * 9 * low)


def _question(pair: Sum, random: Random) -> str:
    return f"What is {pair[0]} + {pair[1]}?"


ADDITION = Family[Sum](
    name="addition",
    thinking_helps=True,
    difficulty={"digits": Difficulty("digits of each number", 4, 1, 12)},
    sample=_sample,
    key=lambda pair: sum_key(*pair),
    question=_question,
    answer=lambda pair: str(pair[0] + pair[1]),
    steps=lambda pair, random: column_steps(*pair),
    recheck=lambda pair: column_steps(pair[1], pair[0]),
    steps_checkable=True,
)
