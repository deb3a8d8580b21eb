"""Make a target from given numbers: `Make 23 from 3, 5 and 8.` is worked by trying, each try from left to right.

`3+5=8 8+8=16 again 3*5=15 15+8=23` and the answer is an expression, `3*5+8`. Any expression counts that uses each
number at most as often as it is given and has exactly the target as its value (our own parser, no `eval`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, held_out

_AGAIN = " again"  # said at the end of a try that missed
_LARGEST_NUMBER, _LARGEST_VALUE = 9, 99
_MOST_MISSES, _MOST_TRIES = 3, 100
_LONGEST_ANSWER = 200  # characters: bounds the depth of the parser and the size of its numbers

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
_SIGNS = {"×": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}

_WORDINGS = (
    "Make {target} from {numbers}. Use each number at most once, with + - * and brackets.",
    "Use {numbers} to make {target}. Each number at most once; you may use + - * and brackets.",
)


@dataclass(frozen=True, slots=True)
class Goal:
    """Numbers as they are shown, the target, and one way to it: the same numbers in order, with the signs between."""

    numbers: tuple[int, ...]
    target: int
    order: tuple[int, ...]
    signs: tuple[str, ...]


def walk(order: tuple[int, ...], signs: tuple[str, ...]) -> list[tuple[str, int]] | None:
    """The steps of a try from left to right with their values; None where one leaves 0 to 99."""
    value, steps = order[0], []
    for sign, number in zip(signs, order[1:], strict=True):
        result = value + number if sign == "+" else value - number if sign == "-" else value * number
        if not 0 <= result <= _LARGEST_VALUE:
            return None
        steps.append((f"{value}{sign}{number}={result}", result))
        value = result
    return steps


def expression(order: tuple[int, ...], signs: tuple[str, ...]) -> str:
    """The try as one expression: (3, 5, 8), ("+", "*") -> `(3+5)*8`."""
    text, last = str(order[0]), ""
    for sign, number in zip(signs, order[1:], strict=True):
        text = f"({text}){sign}{number}" if sign == "*" and last in ("+", "-") else f"{text}{sign}{number}"
        last = sign
    return text


def _random_try(random: Random, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return tuple(random.sample(numbers, len(numbers))), tuple(random.choices("+-*", k=len(numbers) - 1))


def _make(random: Random, dials: Mapping[str, int]) -> Goal:
    while True:
        numbers = tuple(random.randint(1, _LARGEST_NUMBER) for _ in range(dials["count"]))
        order, signs = _random_try(random, numbers)
        steps = walk(order, signs)
        if steps and steps[-1][1] not in (0, *numbers):
            return Goal(numbers, steps[-1][1], order, signs)


def goal_key(numbers: tuple[int, ...], target: int) -> str:
    """The key of numbers in any order and a target."""
    return f"countdown {' '.join(map(str, sorted(numbers)))} = {target}"


def _ask(goal: Goal, random: Random) -> str:
    *first, last = map(str, goal.numbers)
    return random.choice(_WORDINGS).format(target=goal.target, numbers=f"{', '.join(first)} and {last}")


def _steps(goal: Goal, random: Random) -> list[str]:
    """None to three tries that miss, then the one that hits. None of them hits what an exam asks for."""
    steps: list[str] = []
    misses = random.randint(0, _MOST_MISSES)
    for _ in range(_MOST_TRIES):  # of some numbers there may be no such miss
        if not misses:
            break
        tried = walk(*_random_try(random, goal.numbers))
        if tried and tried[-1][1] != goal.target and not held_out(goal_key(goal.numbers, tried[-1][1])):
            steps += [step for step, _ in tried]
            steps[-1] += _AGAIN
            misses -= 1
    return steps + _recheck(goal)


def _recheck(goal: Goal) -> list[str]:
    return [step for step, _ in walk(goal.order, goal.signs) or ()]


def accepts(answer: str, info: Mapping[str, object]) -> bool:
    """Whether `answer` is an expression of the given numbers (each at most as often as given) worth the target.

    `info` holds `numbers` (tuple of int) and `target` (int). Total: anything that is no expression is wrong.
    """
    numbers = info["numbers"]
    if not isinstance(numbers, tuple) or len(answer) > _LONGEST_ANSWER:
        return False
    said, _, worth = answer.strip().strip("$").partition("=")
    try:
        value, used = evaluate(said)
        if worth and evaluate(worth)[0] != value:
            return False
    except (ValueError, ZeroDivisionError):
        return False
    return value == info["target"] and Counter(used) <= Counter(numbers)


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression of whole numbers, + - * / and brackets, and the numbers in it.

    Signs may be LaTeX's. Raises ValueError where it is none, ZeroDivisionError where it divides by zero.
    """
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    tokens, at = [], 0
    for found in _TOKEN.finditer(text):
        if found.start() != at:
            break
        tokens.append(found[1])
        at = found.end()
    if text[at:].strip():
        raise ValueError(f"`{text[at:].strip()[0]}` does not belong in an expression")
    tokens.reverse()
    used: list[int] = []
    value = _sum(tokens, used)
    if tokens:
        raise ValueError(f"`{tokens[-1]}` is one too many")
    return value, used


def _sum(rest: list[str], used: list[int]) -> Fraction:
    value = _product(rest, used)
    while rest and rest[-1] in "+-":
        value = value + _product(rest, used) if rest.pop() == "+" else value - _product(rest, used)
    return value


def _product(rest: list[str], used: list[int]) -> Fraction:
    value = _atom(rest, used)
    while rest and rest[-1] in "*/":
        value = value * _atom(rest, used) if rest.pop() == "*" else value / _atom(rest, used)
    return value


def _atom(rest: list[str], used: list[int]) -> Fraction:
    token = rest.pop() if rest else ""
    if token == "(":
        value = _sum(rest, used)
        if not rest or rest.pop() != ")":
            raise ValueError("a bracket is not closed")
        return value
    if not token.isdigit():
        raise ValueError(f"a number is missing before `{token}`")
    used.append(int(token))
    return Fraction(used[-1])


COUNTDOWN = Family[Goal](
    name="countdown",
    pays=True,
    dials={"count": Difficulty("numbers to make the target from", 3, 3, 5)},
    make=_make,
    key=lambda goal: goal_key(goal.numbers, goal.target),
    ask=_ask,
    answer=lambda goal: expression(goal.order, goal.signs),
    steps=_steps,
    recheck=_recheck,
    info=lambda goal: {"numbers": goal.numbers, "target": goal.target},
    accepts=accepts,
)
