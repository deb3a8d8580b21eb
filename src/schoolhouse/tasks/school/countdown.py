"""Make a target from given numbers: `Make 23 from 3, 5 and 8.` is solved by trying, each try from left to right.

The steps are `3+5=8 8+8=16 again 3*5=15 15+8=23`, and the answer is an expression, `3*5+8`. An expression is correct if
its value is the target and it uses each number at most as often as it is given. (Own parser, no `eval`.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family, is_held_out

_AGAIN = " again"  # ends a try that missed
_LARGEST_NUMBER, _LARGEST_VALUE = 9, 99
_MAX_MISSES, _MAX_TRIES = 3, 100
_LONGEST_ANSWER = 200  # characters: bounds the depth of the parser and the size of its numbers

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
_SIGNS = {"×": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}

_WORDINGS = (
    "Make {target} from {numbers}. Use each number at most once, with + - * and brackets.",
    "Use {numbers} to make {target}. Each number at most once; you may use + - * and brackets.",
)


@dataclass(frozen=True, slots=True)
class Puzzle:
    """The given numbers, the target, and one solution: the numbers in order and the signs between them."""

    numbers: tuple[int, ...]
    target: int
    order: tuple[int, ...]
    signs: tuple[str, ...]


def left_to_right_steps(order: tuple[int, ...], signs: tuple[str, ...]) -> list[tuple[str, int]] | None:
    """The steps of a try from left to right with their values; None where a value is not within 0 to 99."""
    value, steps = order[0], []
    for sign, number in zip(signs, order[1:], strict=True):
        result = value + number if sign == "+" else value - number if sign == "-" else value * number
        if not 0 <= result <= _LARGEST_VALUE:
            return None
        steps.append((f"{value}{sign}{number}={result}", result))
        value = result
    return steps


def left_to_right_expression(order: tuple[int, ...], signs: tuple[str, ...]) -> str:
    """The try as one expression: (3, 5, 8), ("+", "*") -> `(3+5)*8`."""
    text, last = str(order[0]), ""
    for sign, number in zip(signs, order[1:], strict=True):
        text = f"({text}){sign}{number}" if sign == "*" and last in ("+", "-") else f"{text}{sign}{number}"
        last = sign
    return text


def _random_try(random: Random, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return tuple(random.sample(numbers, len(numbers))), tuple(random.choices("+-*", k=len(numbers) - 1))


def _sample(random: Random, difficulty: Mapping[str, int]) -> Puzzle:
    while True:
        numbers = tuple(random.randint(1, _LARGEST_NUMBER) for _ in range(difficulty["count"]))
        order, signs = _random_try(random, numbers)
        steps = left_to_right_steps(order, signs)
        if steps and steps[-1][1] not in (0, *numbers):
            return Puzzle(numbers, steps[-1][1], order, signs)


def puzzle_key(numbers: tuple[int, ...], target: int) -> str:
    """The key of numbers in any order and a target."""
    return f"countdown {' '.join(map(str, sorted(numbers)))} = {target}"


def _question(puzzle: Puzzle, random: Random) -> str:
    *first, last = map(str, puzzle.numbers)
    return random.choice(_WORDINGS).format(target=puzzle.target, numbers=f"{', '.join(first)} and {last}")


def _steps(puzzle: Puzzle, random: Random) -> list[str]:
    """Zero to three tries that miss, then the solution. No try hits the target of a held-out puzzle."""
    steps: list[str] = []
    misses = random.randint(0, _MAX_MISSES)
    for _ in range(_MAX_TRIES):  # some numbers have no such try
        if not misses:
            break
        attempt = left_to_right_steps(*_random_try(random, puzzle.numbers))
        if attempt and attempt[-1][1] != puzzle.target and not is_held_out(puzzle_key(puzzle.numbers, attempt[-1][1])):
            steps += [step for step, _ in attempt]
            steps[-1] += _AGAIN
            misses -= 1
    return steps + _recheck(puzzle)


def _recheck(puzzle: Puzzle) -> list[str]:
    return [step for step, _ in left_to_right_steps(puzzle.order, puzzle.signs) or ()]


def accepts(answer: str, info: Mapping[str, object]) -> bool:
    """Whether `answer` is an expression of the given numbers, each at most as often as given, with the target as value.

    `info` has `numbers` (tuple of int) and `target` (int). Never raises: text that is no expression is wrong.
    """
    numbers = info["numbers"]
    if not isinstance(numbers, tuple) or len(answer) > _LONGEST_ANSWER:
        return False
    expression, _, stated_value = answer.strip().strip("$").partition("=")
    try:
        value, used = evaluate_expression(expression)
        if stated_value and evaluate_expression(stated_value)[0] != value:
            return False
    except (ValueError, ZeroDivisionError):
        return False
    return value == info["target"] and Counter(used) <= Counter(numbers)


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression of whole numbers, + - * / and brackets, and the numbers in it.

    Signs may be those of LaTeX. Raises ValueError for other text and ZeroDivisionError for a division by zero.
    """
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    tokens, at = [], 0
    for match in _TOKEN.finditer(text):
        if match.start() != at:
            break
        tokens.append(match[1])
        at = match.end()
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


COUNTDOWN = Family[Puzzle](
    name="countdown",
    thinking_helps=True,
    difficulty={"count": Difficulty("numbers to make the target from", 3, 3, 5)},
    sample=_sample,
    key=lambda puzzle: puzzle_key(puzzle.numbers, puzzle.target),
    question=_question,
    answer=lambda puzzle: left_to_right_expression(puzzle.order, puzzle.signs),
    steps=_steps,
    recheck=_recheck,
    grading_info=lambda puzzle: {"numbers": puzzle.numbers, "target": puzzle.target},
    accepts=accepts,
)
