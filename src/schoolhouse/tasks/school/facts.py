"""The family `facts`: small sums, differences and products, and questions that ask for the next number.

The family `facts` has about 230 different problems at the default difficulty. About 24 of these problems are held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, sum_key

Fact = tuple[str, int, int]
"""An operation and two numbers: ("+", 7, 5), ("-", 12, 5), ("*", 7, 5). The number after 41 is ("next", 41, 1)."""

_LARGEST_BEFORE = 98


def fact_result(fact: Fact) -> int:
    """Return the result of a fact (a small sum, difference or product, or the next number)."""
    operation, a, b = fact
    return a - b if operation == "-" else a * b if operation == "*" else a + b


def fact_key(fact: Fact) -> str:
    """Return the key that identifies a fact. The order of factors does not change the key.

    A sum has the same key in the family `facts` as in the family `addition`.
    """
    operation, a, b = fact
    if operation == "+":
        return sum_key(a, b)
    if operation == "*":
        a, b = min(a, b), max(a, b)
    return f"facts {a} {operation} {b}"


def fact_step(fact: Fact) -> str:
    """Write a fact as a step, for example `7+5=12`."""
    operation, a, b = fact
    return f"{a}{'+' if operation == 'next' else operation}{b}={fact_result(fact)}"


def _sample(random: Random, difficulty: Mapping[str, int]) -> Fact:
    top = difficulty["operand"]
    operation = random.choice(("+", "-", "*", "next"))
    if operation == "next":
        return operation, random.randint(0, _LARGEST_BEFORE), 1
    a, b = random.randint(0, top), random.randint(0, top)
    return (operation, max(a, b), min(a, b)) if operation == "-" else (operation, a, b)


def _question(fact: Fact, random: Random) -> str:
    operation, a, b = fact
    if operation == "next":
        return random.choice((f"Which number comes after {a}?", f"What is the next number after {a}?"))
    return f"What is {a} {operation} {b}?"


def _recheck(fact: Fact) -> list[str]:
    """Check a fact with the inverse operation. A product is checked with its factors in the other order."""
    operation, a, b = fact
    value = fact_result(fact)
    if operation == "-":
        return [f"{value}+{b}={a}"]
    return [f"{b}*{a}={value}"] if operation == "*" else [f"{value}-{b}={a}"]


FACTS = Family[Fact](
    name="facts",
    thinking_helps=False,
    difficulty={"operand": Difficulty("largest number in a sum, difference or product", 9, 5, 12)},
    sample=_sample,
    key=fact_key,
    question=_question,
    answer=lambda fact: str(fact_result(fact)),
    steps=lambda fact, random: [fact_step(fact)],
    recheck=_recheck,
)
