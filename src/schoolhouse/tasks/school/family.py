"""A family of problems as plain data and small functions, and the styles of its demonstrations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Literal, TypeVar, get_args

Instance = TypeVar("Instance")

Style = Literal["no_cot", "partial", "full", "self_check", "step_repair", "self_correct", "filler", "systematic_error"]
"""Styles of a demonstration's thought:

no_cot            no thought, only the answer
partial           the first steps
full              all steps
self_check        all steps, then the result once more another way
step_repair       all steps, with one wrong step that is noticed and corrected at once
self_correct      a whole solution with a mistake, then all correct steps; `self_check` where a family has none
filler            words without meaning, few or many
systematic_error  a solution with recurring mistakes and its wrong answer; `full` where a family has none
"""

STYLES: tuple[Style, ...] = get_args(Style)

CHECK_WORD, REPAIR_WORD = "check", "no"  # between steps and their check; between a wrong step and the correct one
FILLER_WORDS = ("well", "so", "then", "now")
FILLER_CONTINUE_PROBABILITY = 0.9
_MAX_FILLER_WORDS = 60


@dataclass(frozen=True, slots=True)
class Difficulty:
    """One number that sets the difficulty of a family: its meaning, default and limits."""

    meaning: str
    default: int
    minimum: int
    maximum: int


@dataclass(frozen=True)
class Family(Generic[Instance]):
    """Problems of one kind.

    thinking_helps    whether a small model needs a thought to answer at the default difficulty
    difficulty        name of an option -> its meaning, default and limits
    sample            a random instance, given a value for each of these options
    key               the content of an instance, whatever its wording: `a + b` and `b + a` have one key
    question          a wording of the question
    answer            the correct answer
    steps             the whole solution, one string per step; steps are short, because every character costs a token
    recheck           the same result reached another way
    corrupt_step      a step with a mistake
    corrupt_solution  a whole solution with one mistake that is carried on, and its answer. None: not available
    systematic_error  a whole solution with recurring mistakes, and its answer. None: not available
    steps_checkable   whether the solution is unique, so that single steps can be labelled
    grading_info      data of an instance that `accepts` needs
    accepts           (answer, grading_info) -> whether the answer is correct. None: it must equal the reference
    """

    name: str
    thinking_helps: bool
    difficulty: Mapping[str, Difficulty]
    sample: Callable[[Random, Mapping[str, int]], Instance]
    key: Callable[[Instance], str]
    question: Callable[[Instance, Random], str]
    answer: Callable[[Instance], str]
    steps: Callable[[Instance, Random], list[str]]
    recheck: Callable[[Instance], list[str]]
    corrupt_solution: Callable[[Instance, Random], tuple[list[str], str]] | None = None
    systematic_error: Callable[[Instance, Random], tuple[list[str], str]] | None = None
    corrupt_step: Callable[[str, Random], str] = field(default=lambda step, random: wrong_result(step, random))
    steps_checkable: bool = False
    grading_info: Callable[[Instance], Mapping[str, object]] | None = None
    accepts: Callable[[str, Mapping[str, object]], bool] | None = None

    def solve(self, instance: Instance, style: Style, random: Random) -> tuple[str, str]:
        """A thought in one style and its answer. Only `systematic_error` gives a wrong answer."""
        if style == "systematic_error" and self.systematic_error:
            steps, answer = self.systematic_error(instance, random)
            return " ".join(steps), answer
        return self.thought(instance, style, random), self.answer(instance)

    def thought(self, instance: Instance, style: Style, random: Random) -> str:
        """A thought in one style. Wrong steps in it are always corrected."""
        if style == "no_cot":
            return ""
        if style == "filler":
            words = [random.choice(FILLER_WORDS)]
            while random.random() < FILLER_CONTINUE_PROBABILITY and len(words) < _MAX_FILLER_WORDS:
                words.append(random.choice(FILLER_WORDS))
            return " ".join(words)
        steps = self.steps(instance, random)
        if style == "self_correct" and self.corrupt_solution:
            return " ".join([*self.corrupt_solution(instance, random)[0], CHECK_WORD, *steps])
        if style == "partial":
            if len(steps) > 1:
                return " ".join(steps[: random.randrange(1, len(steps))])
            return steps[0].partition("=")[0] if "=" in steps[0] else steps[0][: len(steps[0]) // 2]
        if style in ("self_check", "self_correct"):
            steps = [*steps, CHECK_WORD, *self.recheck(instance)]
        elif style == "step_repair":
            at = random.randrange(len(steps))
            steps[at:at] = [self.corrupt_step(steps[at], random), REPAIR_WORD]
        return " ".join(steps)


def is_held_out(key: str) -> bool:
    """Whether an instance is held out for evaluation, as one in ten is. Only its content decides."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % 10 == 0


def sum_key(a: int, b: int) -> str:
    """The key of a sum, the same in every family with sums and in either order."""
    return f"sum {a}+{b}" if a <= b else f"sum {b}+{a}"


def wrong_result(step: str, random: Random) -> str:
    """`4+6+1=11,1c1` -> `4+6+1=12`: the left side with a result that is off by one."""
    left, _, right = step.partition("=")
    num_digits = len(right) - len(right.lstrip("0123456789"))
    value = int(right[:num_digits])
    return f"{left}={value - 1 if value and random.random() < 0.5 else value + 1}"
