"""What a family of problems is: plain data and small functions; and the hands that work its problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Literal, TypeVar, get_args

Instance = TypeVar("Instance")

Style = Literal["no_cot", "partial", "full", "self_check", "step_repair", "self_correct", "filler", "systematic_error"]
"""Styles of a worked example: `no_cot` a guess without a thought, `partial` the first steps only, `full` all steps,
`self_check` all steps and then once more another way, `step_repair` a wrong turn that is noticed and put right, `self_correct` a way with
a mistake carried to its end, checked, and done again rightly (where a family knows such ways; else `self_check`), `filler`
words that lead nowhere, now few and now many, and then a guess, `systematic_error` a way with the mistakes that this hand makes
again and again, to where it leads (where a family knows them; else `full`)."""

STYLES: tuple[Style, ...] = get_args(Style)

CHECK, REPAIR = "check", "no"  # between steps and their check; between a wrong step and the right one
FILLER_WORDS, FILLER_CONTINUES = (
    ("well", "so", "then", "now"),
    0.9,
)  # what rambling says, and how likely it goes on after each word


@dataclass(frozen=True, slots=True)
class Difficulty:
    """One number that sets the difficulty of a family: what it means, its default and what it may be."""

    meaning: str
    default: int
    least: int
    most: int


@dataclass(frozen=True)
class Family(Generic[Instance]):
    """Problems of one kind.

    pays      does thinking pay: is a direct answer out of a small model's reach at the default dials?
    make      an instance, given one value per dial
    key       its content, whatever the wording: what train and exam are disjoint by (`a + b` and `b + a` are one)
    ask       a wording of the question
    answer    the right answer
    steps     the whole way to it: one string per step, short because every character costs a small model a token
    recheck   the same result reached another way
    slip      a step gone wrong
    botch     a whole way with one mistake that is carried on, and where it ends. None: a wrong guess is all there is
    err       a way with usual mistakes, and where it ends
    strict    is there one way to work it, so that a step can be checked by what it should be?
    info      what `accepts` needs of an instance
    accepts   whether an answer is right, where many are: (answer, info) -> bool. None: it must equal the reference
    """

    name: str
    pays: bool
    dials: Mapping[str, Difficulty]
    make: Callable[[Random, Mapping[str, int]], Instance]
    key: Callable[[Instance], str]
    ask: Callable[[Instance, Random], str]
    answer: Callable[[Instance], str]
    steps: Callable[[Instance, Random], list[str]]
    recheck: Callable[[Instance], list[str]]
    corrupt_solution: Callable[[Instance, Random], tuple[list[str], str]] | None = None
    systematic_error: Callable[[Instance, Random], tuple[list[str], str]] | None = None
    corrupt_step: Callable[[str, Random], str] = field(default=lambda step, random: wrong_result(step, random))
    strict: bool = False
    info: Callable[[Instance], Mapping[str, object]] | None = None
    accepts: Callable[[str, Mapping[str, object]], bool] | None = None

    def solve(self, instance: Instance, hand: Style, random: Random) -> tuple[str, str]:
        """The thought of one hand and the answer behind it, which `systematic_error` alone gets wrong."""
        if hand == "systematic_error" and self.systematic_error:
            steps, end = self.systematic_error(instance, random)
            return " ".join(steps), end
        return self.work(instance, hand, random), self.answer(instance)

    def work(self, instance: Instance, hand: Style, random: Random) -> str:
        """The thought of one hand. It never states a wrong answer: a wrong step is put right at once."""
        if hand == "no_cot":
            return ""
        if hand == "filler":
            words = [random.choice(FILLER_WORDS)]
            while random.random() < FILLER_CONTINUES and len(words) < 60:
                words.append(random.choice(FILLER_WORDS))
            return " ".join(words)
        steps = self.steps(instance, random)
        if hand == "self_correct" and self.corrupt_solution:
            return " ".join([*self.corrupt_solution(instance, random)[0], CHECK, *steps])
        if hand == "partial":
            if len(steps) > 1:
                return " ".join(steps[: random.randrange(1, len(steps))])
            return steps[0].partition("=")[0] if "=" in steps[0] else steps[0][: len(steps[0]) // 2]
        if hand in ("self_check", "self_correct"):
            steps = [*steps, CHECK, *self.recheck(instance)]
        elif hand == "step_repair":
            at = random.randrange(len(steps))
            steps[at:at] = [self.corrupt_step(steps[at], random), REPAIR]
        return " ".join(steps)


def held_out(key: str) -> bool:
    """Whether an instance belongs to the exam (one in ten): a property of its content, not of seed, dial or wording."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % 10 == 0


def sum_key(a: int, b: int) -> str:
    """The key of a sum, the same in every family that asks for one, and in either order."""
    return f"sum {a}+{b}" if a <= b else f"sum {b}+{a}"


def wrong_result(step: str, random: Random) -> str:
    """`4+6+1=11,1c1` -> `4+6+1=12`: the left side with a result that is off by one."""
    left, _, right = step.partition("=")
    digits = len(right) - len(right.lstrip("0123456789"))
    value = int(right[:digits])
    return f"{left}={value - 1 if value and random.random() < 0.5 else value + 1}"
