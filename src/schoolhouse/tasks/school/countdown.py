"""The family `countdown`: make a target number from given numbers, for example `Make 23 from 3, 5 and 8.`.

The thought tries several ways until one try gives the target. Each try is computed from left to right, and the word
`again` starts the next try, as in `3+5=8 8+8=16 again 3*5=15 15+8=23`. The answer is an expression, such as `3*5+8`. An
expression is correct if its value is the target and no number is used more often than it is given. A small parser reads
the expressions; Python's `eval` is not used.
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
    """A countdown puzzle: the given numbers, the target, and one solution.

    The solution is stored as the numbers in their order and the signs between them.
    """

    numbers: tuple[int, ...]
    target: int
    order: tuple[int, ...]
    signs: tuple[str, ...]


def left_to_right_steps(order: tuple[int, ...], signs: tuple[str, ...]) -> list[tuple[str, int]] | None:
    """Return the steps of a try, computed from left to right, with their values.

    Returns None if a value is below 0 or above 99.
    """
    value, steps = order[0], []
    for sign, number in zip(signs, order[1:], strict=True):
        result = value + number if sign == "+" else value - number if sign == "-" else value * number
        if not 0 <= result <= _LARGEST_VALUE:
            return None
        steps.append((f"{value}{sign}{number}={result}", result))
        value = result
    return steps


def left_to_right_expression(order: tuple[int, ...], signs: tuple[str, ...]) -> str:
    """Write a try as one expression, for example (3, 5, 8), ("+", "*") -> `(3+5)*8`."""
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
    """Return the key that identifies a puzzle. The order of the numbers does not change the key."""
    return f"countdown {' '.join(map(str, sorted(numbers)))} = {target}"


def _question(puzzle: Puzzle, random: Random) -> str:
    *first, last = map(str, puzzle.numbers)
    return random.choice(_WORDINGS).format(target=puzzle.target, numbers=f"{', '.join(first)} and {last}")


def _steps(puzzle: Puzzle, random: Random) -> list[str]:
    """Return the steps of up to three wrong tries, followed by the steps of the solution.

    No wrong try reaches the target of a held-out puzzle.
    """
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
    """Return True if the value of `answer` is the target and no number is used more often than it is given.

    The mapping `info` has the keys `numbers` (a tuple of int) and `target` (int). The function never raises an
    exception: a text that is not an expression is a wrong answer.
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
    """Compute the exact value of an expression. Returns the value and the numbers that the expression uses.

    An expression consists of whole numbers, + - * / and brackets. LaTeX signs such as \\times are accepted. Raises
    ValueError if the text is not an expression, and ZeroDivisionError if it divides by zero.
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
        raise ValueError(f"`{text[at:].strip()[0]}` is not allowed; use only numbers, + - * / and brackets")
    tokens.reverse()
    used: list[int] = []
    value = _sum(tokens, used)
    if tokens:
        raise ValueError(f"the expression has an unexpected `{tokens[-1]}`; remove this sign or number")
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
            raise ValueError("a bracket is not closed; add the missing `)`")
        return value
    if not token.isdigit():
        raise ValueError(f"a number is missing before `{token}`; add a number")
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
