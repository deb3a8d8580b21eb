"""The class `Family` (one kind of generated problems), and the styles (forms) of the thoughts in its demonstrations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Literal, TypeVar, get_args

Instance = TypeVar("Instance")

Style = Literal["no_cot", "partial", "full", "self_check", "step_repair", "self_correct", "filler", "systematic_error"]
"""The styles of the thought in a demonstration.

no_cot            The demonstration has no thought, only the answer.
partial           The thought has only the first steps.
full              The thought has all steps.
self_check        The thought has all steps, then reaches the same result in another way.
step_repair       The thought has all steps, and one wrong step that is corrected immediately.
self_correct      The thought has a whole solution with a mistake, then all correct steps. If a family does not support
                  this style, `self_check` is used.
filler            The thought has a few or many words without meaning.
systematic_error  The thought has mistakes that recur, and the answer is wrong. If a family does not support this style,
                  `full` is used.
"""

STYLES: tuple[Style, ...] = get_args(Style)

CHECK_WORD, REPAIR_WORD = "check", "no"  # between steps and their check; between a wrong step and the correct one
FILLER_WORDS = ("well", "so", "then", "now")
FILLER_CONTINUE_PROBABILITY = 0.9
_MAX_FILLER_WORDS = 60


@dataclass(frozen=True, slots=True)
class Difficulty:
    """An option that sets the difficulty of a family (a kind of problems).

    The option has a text that says what its number means, a default, and limits.
    """

    meaning: str
    default: int
    minimum: int
    maximum: int


@dataclass(frozen=True)
class Family(Generic[Instance]):
    """One kind of generated problems. An instance is the content of one problem, such as the two numbers of a sum.

    `thinking_helps` is True if a small model needs a thought to answer correctly at the default difficulty.
    `difficulty` maps the name of each difficulty option to its meaning, default and limits.
    `sample` draws a random instance (one problem) for the given values of the difficulty options.
    `key` identifies the content of a problem, without its wording. The sums a + b and b + a have the same key.
    `question` writes the question in one of several wordings.
    `answer` gives the correct answer.
    `steps` gives the whole solution, one string per step. Steps are short, because every character costs a token.
    `recheck` computes the same result in another way, as a check.
    `corrupt_step` changes a step so that the step has a mistake.
    `corrupt_solution` (optional) gives a whole solution with one mistake, and the wrong answer of the solution. Later
    steps use the result of the mistake. `systematic_error` (optional) gives a whole solution with systematic mistakes
    (the same operation is often wrong in the same way), and the wrong answer of the solution. `steps_checkable` is True
    if there is only one solution, so that each step can be labelled as right or wrong. `grading_info` gives the data of
    a problem that `accepts` needs. `accepts` decides from the answer and `grading_info` whether the answer is correct.
    If `accepts` is None, the answer must equal the reference.
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
        """Return a thought in the given style (form), and its answer.

        Only the style `systematic_error` gives wrong answers.
        """
        if style == "systematic_error" and self.systematic_error:
            steps, answer = self.systematic_error(instance, random)
            return " ".join(steps), answer
        return self.thought(instance, style, random), self.answer(instance)

    def thought(self, instance: Instance, style: Style, random: Random) -> str:
        """Return a thought in the given style. If the thought has wrong steps, later steps correct them."""
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
    """Return True if the problem with this key is held out for evaluation.

    One in ten problems is held out for evaluation. Only the content of a problem decides whether the problem is held
    out.
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % 10 == 0


def sum_key(a: int, b: int) -> str:
    """Return the key that identifies a sum. All families use the same key for a sum.

    The order of the two numbers does not change the key.
    """
    return f"sum {a}+{b}" if a <= b else f"sum {b}+{a}"


def wrong_result(step: str, random: Random) -> str:
    """Replace the result of a step by a result that is wrong by one, for example `4+6+1=11,1c1` -> `4+6+1=12`."""
    left, _, right = step.partition("=")
    num_digits = len(right) - len(right.lstrip("0123456789"))
    value = int(right[:num_digits])
    return f"{left}={value - 1 if value and random.random() < 0.5 else value + 1}"
