"""Sums of two numbers of several digits, added column by column from the units.

`3847 + 2965` is worked as `7+5=12,2c1 4+6+1=11,1c1 8+9+1=18,8c1 3+2+1=6,6`: the digits of a column (and the carry),
their sum, then what is written down, `c1` where one is carried. The last column writes all of its sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, sum_key

Sum = tuple[int, int]


def column(a: str, b: str, carry: int) -> tuple[str, int]:
    """One column but the last: how it is written, and the carry. ("4", "6", 1) -> ("4+6+1=11,1c1", 1)."""
    total = int(a) + int(b) + carry
    plus = "+1" if carry else ""
    if total < 10:
        return f"{a}+{b}{plus}={total},{total}", 0
    return f"{a}+{b}{plus}={total},{total - 10}c1", 1


def columns(a: int, b: int) -> list[str]:
    """All columns of a sum, units first; the shorter number is filled with zeros."""
    top, low = str(a), str(b)
    width = max(len(top), len(low))
    *inner, last = zip(reversed(top.zfill(width)), reversed(low.zfill(width)), strict=True)
    steps, carry = [], 0
    for x, y in inner:
        step, carry = column(x, y, carry)
        steps.append(step)
    total = int(last[0]) + int(last[1]) + carry
    steps.append(f"{last[0]}+{last[1]}{'+1' if carry else ''}={total},{total}")
    return steps


def _make(random: Random, dials: Mapping[str, int]) -> Sum:
    low = 10 ** (dials["digits"] - 1)
    return low + int(random.random() * 9 * low), low + int(random.random() * 9 * low)


def _ask(pair: Sum, random: Random) -> str:
    return f"What is {pair[0]} + {pair[1]}?"


ADDITION = Family[Sum](
    name="addition",
    pays=True,
    dials={"digits": Difficulty("digits of each number", 4, 1, 12)},
    make=_make,
    key=lambda pair: sum_key(*pair),
    ask=_ask,
    answer=lambda pair: str(pair[0] + pair[1]),
    steps=lambda pair, random: columns(*pair),
    recheck=lambda pair: columns(pair[1], pair[0]),
    strict=True,
)
