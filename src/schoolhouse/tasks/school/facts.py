"""What one knows by heart: small sums, differences and products, and which number comes next.

There are about 230 instances at the default dial, so an exam holds about two dozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, sum_key

Fact = tuple[str, int, int]
"""Operation and the two numbers: ("+", 7, 5), ("-", 12, 5), ("*", 7, 5), and ("next", 41, 1) for the one after 41."""

_LARGEST_BEFORE = 98


def result(fact: Fact) -> int:
    """What the fact says."""
    operation, a, b = fact
    return a - b if operation == "-" else a * b if operation == "*" else a + b


def fact_key(fact: Fact) -> str:
    """The key of a fact: factors in either order are one, a sum is what the addition family calls it."""
    operation, a, b = fact
    if operation == "+":
        return sum_key(a, b)
    if operation == "*":
        a, b = min(a, b), max(a, b)
    return f"facts {a} {operation} {b}"


def written(fact: Fact) -> str:
    """The fact as a step: `7+5=12`."""
    operation, a, b = fact
    return f"{a}{'+' if operation == 'next' else operation}{b}={result(fact)}"


def _make(random: Random, dials: Mapping[str, int]) -> Fact:
    top = dials["operand"]
    operation = random.choice(("+", "-", "*", "next"))
    if operation == "next":
        return operation, random.randint(0, _LARGEST_BEFORE), 1
    a, b = random.randint(0, top), random.randint(0, top)
    return (operation, max(a, b), min(a, b)) if operation == "-" else (operation, a, b)


def _ask(fact: Fact, random: Random) -> str:
    operation, a, b = fact
    if operation == "next":
        return random.choice((f"Which number comes after {a}?", f"What is the next number after {a}?"))
    return f"What is {a} {operation} {b}?"


def _recheck(fact: Fact) -> list[str]:
    """A sum or the next number undone, a difference refilled, a product turned round."""
    operation, a, b = fact
    value = result(fact)
    if operation == "-":
        return [f"{value}+{b}={a}"]
    return [f"{b}*{a}={value}"] if operation == "*" else [f"{value}-{b}={a}"]


FACTS = Family[Fact](
    name="facts",
    pays=False,
    dials={"operand": Difficulty("largest number in a sum, difference or product", 9, 5, 12)},
    make=_make,
    key=fact_key,
    ask=_ask,
    answer=lambda fact: str(result(fact)),
    steps=lambda fact, random: [written(fact)],
    recheck=_recheck,
)
