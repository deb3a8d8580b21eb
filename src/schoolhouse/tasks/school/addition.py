"""Sums of two numbers of several digits, added column by column from the units.

The steps of `3847 + 2965` are `7+5=12,2c1 4+6+1=11,1c1 8+9+1=18,8c1 3+2+1=6,6`: the digits of a column and the carry,
their sum, then the digit to write and `c1` for a carry. The last column writes all of its sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, sum_key

Sum = tuple[int, int]


def column_step(a: str, b: str, carry: int) -> tuple[str, int]:
    """The step of any column but the last, and its carry: ("4", "6", 1) -> ("4+6+1=11,1c1", 1)."""
    total = int(a) + int(b) + carry
    plus = "+1" if carry else ""
    if total < 10:
        return f"{a}+{b}{plus}={total},{total}", 0
    return f"{a}+{b}{plus}={total},{total - 10}c1", 1


def column_steps(a: int, b: int) -> list[str]:
    """The steps of a sum, units first; the shorter number is padded with zeros."""
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
