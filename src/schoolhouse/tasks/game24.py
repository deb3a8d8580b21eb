"""The Game of 24: join four numbers by + - * / into 24, each used once (`game24:PATH.csv`).

The puzzles are those of Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601), in the file of its authors: ranked by how
long people took; ranks 901 to 1000 are the exam, the others practice. An exact solver works examples of four kinds:
whole solutions (`solve`), what may be done next (`next`), whether some numbers still reach 24 (`value`), and which of
several do (`vote`).

A thought is a line such as `13-9=4 (4 4 10)`: one operation, and the numbers that are left. In the operation a number
that is not whole stands in brackets, `8/(1/3)=24`. No number is below zero: taking the smaller from the larger loses no
way to 24.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache, lru_cache
from itertools import accumulate, combinations
from pathlib import Path
from random import Random
from typing import NamedTuple

from schoolhouse.config import suggest
from schoolhouse.randomness import python_random
from schoolhouse.tasks.answer_match import extract
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school.countdown import evaluate
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, SchoolError, Verdict

TARGET = 24
KINDS = ("solve", "next", "value", "vote")
OPTIONS = ("holdout", "demos")
LINES = 12  # of a page of text
CHOICES = 8  # positions that stand for election in an example, at most
WORTH = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
"""What a word of the model about some numbers counts: the figures of Tree of Thoughts' own code."""

Left = tuple[Fraction, ...]
"""Numbers still to be joined, the smallest first."""

_NUMBER = r"(\d+|\(\d+/\d+\))"
_THOUGHT = re.compile(rf"\s*{_NUMBER}([-+*/]){_NUMBER}={_NUMBER} \(([\d/ ]*)\)\s*", re.ASCII)
_LONGEST_ANSWER = 200  # characters: bounds the parser


class Move(NamedTuple):
    """One operation on two of the numbers."""

    a: Fraction
    sign: str
    b: Fraction
    left: Left

    @property
    def result(self) -> Fraction:
        return _joined(self.a, self.sign, self.b)

    def __str__(self) -> str:
        a, b, result = (str(n) if n.denominator == 1 else f"({n})" for n in (self.a, self.b, self.result))
        return f"{a}{self.sign}{b}={result} ({told(self.left)})"


def told(left: Left) -> str:
    return " ".join(map(str, left))


@cache
def moves(left: Left) -> tuple[Move, ...]:
    """All that may be done with some numbers; of a and b the larger first, which loses no way to a positive target."""
    found = {}
    for i, j in combinations(range(len(left)), 2):
        low, high = left[i], left[j]
        rest = [*left[:i], *left[i + 1 : j], *left[j + 1 :]]
        pairs = [(high, "+", low), (high, "-", low), (high, "*", low)]
        pairs += [(high, "/", low)] if low else []
        pairs += [(low, "/", high)] if high and low != high else []
        for a, sign, b in pairs:
            found[a, sign, b] = Move(a, sign, b, tuple(sorted([*rest, _joined(a, sign, b)])))
    return tuple(found.values())


@cache
def reaches(left: Left) -> bool:
    """Whether the numbers can be joined into 24."""
    return left == (TARGET,) if len(left) == 1 else any(reaches(move.left) for move in moves(left))


def solution(left: Left, random: Random) -> tuple[list[Move], str]:
    """A way to 24, drawn from all, and the expression it makes. Raises ValueError where there is none."""
    parts, way = [(number, str(number)) for number in left], []
    while len(left) > 1:
        good = [move for move in moves(left) if reaches(move.left)]
        if not good:
            raise ValueError(f"{told(left)} cannot make {TARGET}")
        move = random.choice(good)
        first, second = _taken(parts, move.a), _taken(parts, move.b)
        parts.append((move.result, f"({first}{move.sign}{second})"))
        way.append(move)
        left = move.left
    return way, parts[0][1].removeprefix("(").removesuffix(")") if way else parts[0][1]


def _joined(a: Fraction, sign: str, b: Fraction) -> Fraction:
    return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b


def _taken(parts: list[tuple[Fraction, str]], number: Fraction) -> str:
    at = next(i for i, (value, _) in enumerate(parts) if value == number)
    return parts.pop(at)[1]


@lru_cache(100_000)
def read_thought(text: str) -> tuple[Fraction, str, Fraction, Fraction, Left] | None:
    """What a thought says: a, sign, b, their result, and the numbers left. None where it is not one."""
    found = _THOUGHT.fullmatch(text)
    if not found:
        return None
    try:
        a, b, result = (Fraction(found[i].strip("()")) for i in (1, 3, 4))
        return a, found[2], b, result, tuple(sorted(map(Fraction, found[5].split())))
    except (ValueError, ZeroDivisionError):
        return None


class Game24(Task):
    """Puzzles of a file, and an exact solver that works examples for them."""

    in_process = True
    delimiter = "\n"

    def __init__(self, path: Path, seed: int = 0, holdout: str = "901-1000", demos: str = "solve=1") -> None:
        self.name, self.seed = f"game24:{path}", seed
        low, high = _ranks(holdout)
        ranked = _read(path)
        self.held_out = [left for rank, left in ranked if low <= rank <= high]
        exams = set(self.held_out)
        self.practice = [left for rank, left in ranked if not low <= rank <= high and left not in exams]
        self.demos = _lessons(demos)
        if not self.practice or not self.held_out:
            raise SchoolError(
                f"{path}: no puzzle is left for practice or for the exam (holdout={holdout}): choose other ranks"
            )

    @classmethod
    def open(cls, path: str, seed: int = 0, **options: str) -> Game24:
        """The task of a file. Options: `holdout=901-1000`, ranks that are held out; `demos=solve=2,next=1,value=1`, the
        kinds of worked examples and their weights. Raises SchoolError for an unknown one."""
        for option in options:
            if option not in OPTIONS:
                raise SchoolError(f"game24: unknown option `{option}`{suggest(option, OPTIONS)}")
        if not path:
            raise SchoolError("game24: give the file of puzzles, as in game24:game24.csv")
        return cls(Path(path), seed, **options)

    def train_problems(self, step: int, count: int) -> list[Problem]:
        random = python_random(Key(self.seed, "game24 practice", step))
        return [self._problem(random.choice(self.practice)) for _ in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        return [self._problem(left) for left in self.held_out[:count]]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Examples of the kinds in `lessons`, all about puzzles of practice and what they lead to."""
        random = python_random(Key(self.seed, "game24 worked", step))
        kinds, upto = list(self.demos), list(accumulate(self.demos.values()))
        examples = []
        for _ in range(count):
            (kind,) = random.choices(kinds, cum_weights=upto)
            problem = self._problem(random.choice(self.practice))
            examples.append(_EXAMPLES[kind](self, problem, random))
        return examples

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Pages of what may be done with the numbers of puzzles of practice: arithmetic, no word about what helps."""
        random = python_random(Key(self.seed, "game24 exposition", step))
        return ["\n".join(self._line(random) for _ in range(LINES)) for _ in range(count)]

    def _line(self, random: Random) -> str:
        left = random.choice(self.practice)
        for _ in range(random.randrange(3)):
            left = random.choice(moves(left)).left
        few = random.sample(moves(left), min(3, len(moves(left))))
        return f"With {told(left)} one may do {', or '.join(map(str, few))}."

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        answer, reason = extract(reply)
        if answer is None:
            return Verdict(0.0, reason)
        if len(answer) > _LONGEST_ANSWER:
            return Verdict(0.0, "too long for an expression")
        try:
            value, used = evaluate(max(answer.split("="), key=len))
        except (ValueError, ZeroDivisionError) as error:
            return Verdict(0.0, f"not an expression: {error}")
        if Counter(map(Fraction, used)) != Counter(_left(problem)):
            return Verdict(0.0, "other numbers")
        return Verdict(1.0) if value == TARGET else Verdict(0.0, f"makes {value}")

    def wrong_answer(self, problem: Problem) -> str:
        return f"{problem.reference}+0"

    def make_problem(self, text: str) -> Problem:
        """The puzzle of the numbers in `text`, whether or not it can be solved."""
        numbers = tuple(sorted(map(Fraction, re.findall(r"\d+", text.replace(f"ake {TARGET} from", "")))))
        if len(numbers) != 4:
            raise SchoolError(f"game24: `{text}` names {len(numbers)} numbers; a puzzle has four, as in 4 9 10 13")
        question = Message("user", f"Make {TARGET} from {told(numbers)}, each used once.")
        return Problem(f"game24:{told(numbers)}", (question,), "", "game24", "game24", {"left": numbers})

    # --- thoughts, one by one

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for a thought that leaves 24 within reach, -1 for a false one or one that does not, and all after it."""
        left, ratings = _left(problem), []
        for thought in thoughts:
            found = read_thought(thought)
            if found is None or not _true(left, *found) or not reaches(found[-1]):
                break
            left = found[-1]
            ratings.append(1)
        return ratings + [-1] * (len(thoughts) - len(ratings))

    def propose_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question what may be done next; None where one number is left, or the last thought cannot be read."""
        left = _after(problem, thoughts)
        if left is None or len(left) < 2:
            return None
        return _question(problem, f"What may be done with {told(left)}?")

    def parse_proposals(self, text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if read_thought(line)]

    def value_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question whether 24 can still be made; None where the last thought cannot be read."""
        left = _after(problem, thoughts)
        return None if left is None else _question(problem, f"Can {told(left)} make {TARGET}?")

    def parse_value(self, text: str) -> float | None:
        return WORTH.get(text.strip())

    def vote_prompt(self, problem: Problem, ways: Sequence[Sequence[str]]) -> Problem | None:
        """The question which of several positions can still make 24."""
        left = [_after(problem, thoughts) for thoughts in ways]
        listed = [f"{at}: {'nothing' if numbers is None else told(numbers)}" for at, numbers in enumerate(left, 1)]
        return _question(problem, "\n".join([f"Which of these can make {TARGET}?", *listed]))

    def parse_vote(self, text: str) -> int | None:
        return int(text) - 1 if text.strip().isdecimal() else None

    # --- examples

    def _problem(self, left: Left) -> Problem:
        _, answer = solution(left, python_random(Key(0, f"game24 {told(left)}")))
        return replace(self.make_problem(told(left)), reference=answer)

    def _solve(self, problem: Problem, random: Random) -> Demonstration:
        way, answer = solution(_left(problem), random)
        return Demonstration(problem, "\n".join(map(str, way)), f"\\boxed{{{answer}}}", "solve")

    def _next(self, problem: Problem, random: Random) -> Demonstration:
        """All that may be done, good or bad, always in the same order, so that nothing is forgotten or said twice."""
        left = _left(problem)
        for _ in range(random.choices((0, 1, 2), weights=(3, 2, 1))[0]):
            left = random.choice(moves(left)).left
        asked = _question(problem, f"What may be done with {told(left)}?")
        return Demonstration(asked, None, "\n".join(map(str, moves(left))), "next")

    def _value(self, problem: Problem, random: Random) -> Demonstration:
        """Numbers on the way to 24 or off it, as often the one as the other where there are both."""
        left = _left(problem)
        for _ in range(random.choices((1, 2, 3), weights=(6, 3, 1))[0]):
            wanted = random.random() < 0.5
            options = [move for move in moves(left) if reaches(move.left) == wanted] or list(moves(left))
            left = random.choice(options).left
        asked = _question(problem, f"Can {told(left)} make {TARGET}?")
        return Demonstration(asked, None, "sure" if reaches(left) else "impossible", "value")

    def _vote(self, problem: Problem, random: Random) -> Demonstration:
        """One move that keeps 24 within reach, among others that do not; up to the last move of all."""
        left = _left(problem)
        for _ in range(random.choices((0, 1, 2), weights=(5, 3, 2))[0]):
            left = random.choice([move.left for move in moves(left) if reaches(move.left)])
        good = [move for move in moves(left) if reaches(move.left)]
        bad = [move for move in moves(left) if not reaches(move.left)]
        right = random.choice(good)
        few = [right, *random.sample(bad, min(len(bad), random.randrange(1, CHOICES)))]
        random.shuffle(few)
        asked = self.vote_prompt(problem, [[str(move)] for move in few])
        assert asked
        return Demonstration(asked, None, str(1 + few.index(right)), "vote")


_EXAMPLES = {"solve": Game24._solve, "next": Game24._next, "value": Game24._value, "vote": Game24._vote}


def _left(problem: Problem) -> Left:
    left = problem.info["left"]
    assert isinstance(left, tuple)
    return left


def _question(problem: Problem, text: str) -> Problem:
    return Problem(f"{problem.id} | {text}", (Message("user", text),), "", problem.family, problem.source)


def _after(problem: Problem, thoughts: Sequence[str]) -> Left | None:
    if not thoughts:
        return _left(problem)
    found = read_thought(thoughts[-1])
    return None if found is None else found[-1]


def _true(left: Left, a: Fraction, sign: str, b: Fraction, result: Fraction, after: Left) -> bool:
    """Whether a thought takes two of the numbers, joins them rightly and leaves what it says."""
    rest = Counter(left)
    rest.subtract((a, b))
    if min(rest.values()) < 0 or (sign == "/" and not b) or _joined(a, sign, b) != result:
        return False
    return Counter(after) == rest + Counter([result])


def _ranks(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise SchoolError(f"game24: `exam` is `{text}`; it must be a range of ranks such as 901-1000")
    return int(low), int(high)


def _lessons(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        if kind not in KINDS:
            raise SchoolError(f"game24: unknown kind of lesson `{kind}`{suggest(kind, KINDS)}")
        try:
            weights[kind] = float(weight or 1)
        except ValueError:
            weights[kind] = -1.0
        if not 0 < weights[kind] < float("inf"):
            raise SchoolError(f"game24: the weight of `{kind}` is `{weight}`; it must be a number above 0")
    return weights


def _read(path: Path) -> list[tuple[int, Left]]:
    """Rank and numbers of each puzzle. Raises SchoolError naming the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"Rank", "Puzzles"} <= set(rows.fieldnames or ()):
                raise SchoolError(f"{path}:1: the columns must be named, and `Rank` and `Puzzles` among them")
            return [_puzzle(row, f"{path}:{rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SchoolError(f"cannot read {path}: {error}; give the path of a CSV file of puzzles") from error


def _puzzle(row: dict[str, str], place: str) -> tuple[int, Left]:
    try:
        rank, left = int(row["Rank"]), tuple(sorted(Fraction(int(n)) for n in row["Puzzles"].split()))
    except (ValueError, TypeError, AttributeError):
        advice = "`Rank` must be a whole number and `Puzzles` four of them, as in 901,4 5 6 10"
        raise SchoolError(f"{place}: {advice}") from None
    if len(left) != 4 or not reaches(left):
        raise SchoolError(f"{place}: {told(left)} is no puzzle: four numbers that make {TARGET} are")
    return rank, left
