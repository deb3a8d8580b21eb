"""The task Game of 24 (`game24:PATH.csv`): combine four numbers with + - * / to make 24. Each number is used once.

The puzzles are the puzzles of the paper Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601), read from the authors'
file. The puzzles are ranked by the time that people needed to solve them. The puzzles with ranks 901 to 1000 are held
out for evaluation. An exact solver writes four kinds of demonstrations. A demonstration of the kind `solve` is a whole
solution. A demonstration of the kind `next` lists all possible next moves. A demonstration of the kind `value` says
whether some numbers can still make 24. A demonstration of the kind `vote` says which of several groups of numbers can
make 24.

A thought is a line such as `13-9=4 (4 4 10)`: one operation, and the numbers that are left. In an operation, a number
that is not whole is written in brackets, as in `8/(1/3)=24`. No number is below zero, because a move always subtracts
the smaller number from the larger number. Every solvable puzzle has a solution without negative numbers.
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
from schoolhouse.tasks.answers.extraction import extract_answer
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school.countdown import evaluate_expression
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, SchoolError, Verdict

TARGET = 24
DEMO_KINDS = ("solve", "next", "value", "vote")
OPTIONS = ("holdout", "demos")
LINES_PER_PAGE = 12
MAX_VOTE_CHOICES = 8  # positions in a `vote` demonstration
VALUE_WORDS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
"""The value of each possible answer to a value prompt, as in the code of Tree of Thoughts."""

Numbers = tuple[Fraction, ...]
"""Numbers that are left, the smallest first."""

_NUMBER = r"(\d+|\(\d+/\d+\))"
_THOUGHT = re.compile(rf"\s*{_NUMBER}([-+*/]){_NUMBER}={_NUMBER} \(([\d/ ]*)\)\s*", re.ASCII)
_LONGEST_ANSWER = 200  # characters: bounds the parser


class Move(NamedTuple):
    """A move: one operation on two of the numbers of a puzzle, and the numbers that are left after the operation."""

    a: Fraction
    sign: str
    b: Fraction
    left: Numbers

    @property
    def result(self) -> Fraction:
        return _combine(self.a, self.sign, self.b)

    def __str__(self) -> str:
        a, b, result = (str(n) if n.denominator == 1 else f"({n})" for n in (self.a, self.b, self.result))
        return f"{a}{self.sign}{b}={result} ({format_numbers(self.left)})"


def format_numbers(numbers: Numbers) -> str:
    """Write numbers as a text such as `4 9 10 13`."""
    return " ".join(map(str, numbers))


@cache
def next_moves(numbers: Numbers) -> tuple[Move, ...]:
    """Return every possible move. A difference always has the larger number first."""
    by_operation = {}
    for i, j in combinations(range(len(numbers)), 2):
        low, high = numbers[i], numbers[j]
        rest = [*numbers[:i], *numbers[i + 1 : j], *numbers[j + 1 :]]
        pairs = [(high, "+", low), (high, "-", low), (high, "*", low)]
        pairs += [(high, "/", low)] if low else []
        pairs += [(low, "/", high)] if high and low != high else []
        for a, sign, b in pairs:
            by_operation[a, sign, b] = Move(a, sign, b, tuple(sorted([*rest, _combine(a, sign, b)])))
    return tuple(by_operation.values())


@cache
def can_make_target(numbers: Numbers) -> bool:
    """Return True if the numbers can be combined to make 24."""
    if len(numbers) == 1:
        return numbers == (TARGET,)
    return any(can_make_target(move.left) for move in next_moves(numbers))


def find_solution(numbers: Numbers, random: Random) -> tuple[list[Move], str]:
    """Draw a random solution as moves and as an expression. Raises ValueError if the numbers cannot make 24."""
    parts, solution = [(number, str(number)) for number in numbers], []
    while len(numbers) > 1:
        good = [move for move in next_moves(numbers) if can_make_target(move.left)]
        if not good:
            raise ValueError(f"{format_numbers(numbers)} cannot make {TARGET}")
        move = random.choice(good)
        first, second = _take(parts, move.a), _take(parts, move.b)
        parts.append((move.result, f"({first}{move.sign}{second})"))
        solution.append(move)
        numbers = move.left
    return solution, parts[0][1].removeprefix("(").removesuffix(")") if solution else parts[0][1]


def _combine(a: Fraction, sign: str, b: Fraction) -> Fraction:
    return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b


def _take(parts: list[tuple[Fraction, str]], number: Fraction) -> str:
    at = next(i for i, (value, _) in enumerate(parts) if value == number)
    return parts.pop(at)[1]


@lru_cache(100_000)
def parse_thought(text: str) -> tuple[Fraction, str, Fraction, Fraction, Numbers] | None:
    """Parse a thought into two numbers, sign, result and numbers left. Returns None if the text is not a thought."""
    match = _THOUGHT.fullmatch(text)
    if not match:
        return None
    try:
        a, b, result = (Fraction(match[i].strip("()")) for i in (1, 3, 4))
        return a, match[2], b, result, tuple(sorted(map(Fraction, match[5].split())))
    except (ValueError, ZeroDivisionError):
        return None


class Game24(Task):
    """The Game of 24 with the puzzles of a file. An exact solver writes the demonstrations."""

    in_process = True
    delimiter = "\n"

    def __init__(self, path: Path, seed: int = 0, holdout: str = "901-1000", demos: str = "solve=1") -> None:
        self.name, self.seed = f"game24:{path}", seed
        low, high = _ranks(holdout)
        ranked = _read_puzzles(path)
        self.eval_puzzles = [left for rank, left in ranked if low <= rank <= high]
        held_out = set(self.eval_puzzles)
        self.train_puzzles = [left for rank, left in ranked if not low <= rank <= high and left not in held_out]
        self.demos = _demo_weights(demos)
        if not self.train_puzzles or not self.eval_puzzles:
            raise SchoolError(
                f"{path}: holdout={holdout} leaves no training puzzle or no eval puzzle; choose other ranks to hold out"
            )

    @classmethod
    def open(cls, path: str, seed: int = 0, **options: str) -> Game24:
        """Open the task with the puzzles of a file.

        The option `holdout=901-1000` sets the ranks that are held out. The option `demos=solve=2,next=1,value=1` sets
        the kinds of demonstrations and their weights. Raises SchoolError if an option is unknown.
        """
        for option in options:
            if option not in OPTIONS:
                raise SchoolError(f"game24: unknown option `{option}`{suggest(option, OPTIONS)}")
        if not path:
            raise SchoolError("game24: the path of the puzzle file is missing; write game24:PATH.csv")
        return cls(Path(path), seed, **options)

    def train_problems(self, step: int, count: int) -> list[Problem]:
        random = python_random(Key(self.seed, "game24 practice", step))
        return [self._problem(random.choice(self.train_puzzles)) for _ in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        return [self._problem(left) for left in self.eval_puzzles[:count]]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return demonstrations of the kinds in `demos`, all with numbers of training puzzles."""
        random = python_random(Key(self.seed, "game24 worked", step))
        kinds, cumulative = list(self.demos), list(accumulate(self.demos.values()))
        demonstrations = []
        for _ in range(count):
            (kind,) = random.choices(kinds, cum_weights=cumulative)
            problem = self._problem(random.choice(self.train_puzzles))
            demonstrations.append(_DEMONSTRATE[kind](self, problem, random))
        return demonstrations

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Return pages of pretraining text that list possible moves in training puzzles. The pages do not show which
        moves give 24."""
        random = python_random(Key(self.seed, "game24 exposition", step))
        return ["\n".join(self._line(random) for _ in range(LINES_PER_PAGE)) for _ in range(count)]

    def _line(self, random: Random) -> str:
        left = random.choice(self.train_puzzles)
        for _ in range(random.randrange(3)):
            left = random.choice(next_moves(left)).left
        few = random.sample(next_moves(left), min(3, len(next_moves(left))))
        return f"With {format_numbers(left)} one may do {', or '.join(map(str, few))}."

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        answer, reason = extract_answer(completion)
        if answer is None:
            return Verdict(0.0, reason)
        if len(answer) > _LONGEST_ANSWER:
            return Verdict(0.0, "too long for an expression")
        try:
            value, used = evaluate_expression(max(answer.split("="), key=len))
        except (ValueError, ZeroDivisionError) as error:
            return Verdict(0.0, f"not an expression: {error}")
        if Counter(map(Fraction, used)) != Counter(_left(problem)):
            return Verdict(0.0, "other numbers")
        return Verdict(1.0) if value == TARGET else Verdict(0.0, f"makes {value}")

    def wrong_answer(self, problem: Problem) -> str:
        return f"{problem.reference}+0"

    def make_problem(self, text: str) -> Problem:
        """Make a puzzle from the four numbers in `text`. The puzzle may have no solution."""
        numbers = tuple(sorted(map(Fraction, re.findall(r"\d+", text.replace(f"ake {TARGET} from", "")))))
        if len(numbers) != 4:
            raise SchoolError(f"game24: `{text}` has {len(numbers)} numbers; give four numbers, such as 4 9 10 13")
        question = Message("user", f"Make {TARGET} from {format_numbers(numbers)}, each used once.")
        return Problem(f"game24:{format_numbers(numbers)}", (question,), "", "game24", "game24", {"left": numbers})

    # --- thoughts, one by one

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """Label each thought. A thought gets 1 if the numbers that are left can still make 24.

        If the numbers can no longer make 24 after a thought, this thought and all later thoughts get -1.
        """
        left, labels = _left(problem), []
        for thought in thoughts:
            parsed = parse_thought(thought)
            if parsed is None or not _is_valid_move(left, *parsed) or not can_make_target(parsed[-1]):
                break
            left = parsed[-1]
            labels.append(1)
        return labels + [-1] * (len(thoughts) - len(labels))

    def propose_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """Return the prompt that asks for all next moves.

        Returns None if only one number is left, or if the last thought cannot be parsed.
        """
        left = _left_after(problem, thoughts)
        if left is None or len(left) < 2:
            return None
        return _subproblem(problem, f"What may be done with {format_numbers(left)}?")

    def parse_proposals(self, text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if parse_thought(line)]

    def value_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """Return the prompt that asks whether 24 is still possible, or None if the last thought cannot be parsed."""
        left = _left_after(problem, thoughts)
        return None if left is None else _subproblem(problem, f"Can {format_numbers(left)} make {TARGET}?")

    def parse_value(self, text: str) -> float | None:
        return VALUE_WORDS.get(text.strip())

    def vote_prompt(self, problem: Problem, candidates: Sequence[Sequence[str]]) -> Problem | None:
        """Return the prompt that asks which of several groups of numbers can still make 24."""
        lines = [f"Which of these can make {TARGET}?"]
        for number, thoughts in enumerate(candidates, 1):
            left = _left_after(problem, thoughts)
            lines.append(f"{number}: {'nothing' if left is None else format_numbers(left)}")
        return _subproblem(problem, "\n".join(lines))

    def parse_vote(self, text: str) -> int | None:
        return int(text) - 1 if text.strip().isdecimal() else None

    # --- demonstrations

    def _problem(self, left: Numbers) -> Problem:
        _, answer = find_solution(left, python_random(Key(0, f"game24 {format_numbers(left)}")))
        return replace(self.make_problem(format_numbers(left)), reference=answer)

    def _demonstrate_solve(self, problem: Problem, random: Random) -> Demonstration:
        solution, answer = find_solution(_left(problem), random)
        return Demonstration(problem, "\n".join(map(str, solution)), f"\\boxed{{{answer}}}", "solve")

    def _demonstrate_next(self, problem: Problem, random: Random) -> Demonstration:
        """Make a demonstration that lists every possible move, good or bad, once and in a fixed order."""
        left = _left(problem)
        for _ in range(random.choices((0, 1, 2), weights=(3, 2, 1))[0]):
            left = random.choice(next_moves(left)).left
        prompt = _subproblem(problem, f"What may be done with {format_numbers(left)}?")
        return Demonstration(prompt, None, "\n".join(map(str, next_moves(left))), "next")

    def _demonstrate_value(self, problem: Problem, random: Random) -> Demonstration:
        """Make a demonstration that says whether some numbers can make 24.

        If a puzzle allows both answers, `sure` and `impossible` are equally likely.
        """
        left = _left(problem)
        for _ in range(random.choices((1, 2, 3), weights=(6, 3, 1))[0]):
            solvable = random.random() < 0.5
            moves = next_moves(left)
            left = random.choice([move for move in moves if can_make_target(move.left) == solvable] or moves).left
        prompt = _subproblem(problem, f"Can {format_numbers(left)} make {TARGET}?")
        return Demonstration(prompt, None, "sure" if can_make_target(left) else "impossible", "value")

    def _demonstrate_vote(self, problem: Problem, random: Random) -> Demonstration:
        """Make a demonstration with several moves. Only one of the moves leaves numbers that can still make 24."""
        left = _left(problem)
        for _ in range(random.choices((0, 1, 2), weights=(5, 3, 2))[0]):
            left = random.choice([move.left for move in next_moves(left) if can_make_target(move.left)])
        good = [move for move in next_moves(left) if can_make_target(move.left)]
        bad = [move for move in next_moves(left) if not can_make_target(move.left)]
        best = random.choice(good)
        choices = [best, *random.sample(bad, min(len(bad), random.randrange(1, MAX_VOTE_CHOICES)))]
        random.shuffle(choices)
        prompt = self.vote_prompt(problem, [[str(move)] for move in choices])
        assert prompt
        return Demonstration(prompt, None, str(1 + choices.index(best)), "vote")


_DEMONSTRATE = {
    "solve": Game24._demonstrate_solve,
    "next": Game24._demonstrate_next,
    "value": Game24._demonstrate_value,
    "vote": Game24._demonstrate_vote,
}


def _left(problem: Problem) -> Numbers:
    left = problem.info["left"]
    assert isinstance(left, tuple)
    return left


def _subproblem(problem: Problem, text: str) -> Problem:
    return Problem(f"{problem.id} | {text}", (Message("user", text),), "", problem.family, problem.source)


def _left_after(problem: Problem, thoughts: Sequence[str]) -> Numbers | None:
    if not thoughts:
        return _left(problem)
    parsed = parse_thought(thoughts[-1])
    return None if parsed is None else parsed[-1]


def _is_valid_move(left: Numbers, a: Fraction, sign: str, b: Fraction, result: Fraction, after: Numbers) -> bool:
    """Return True if a thought uses two of the numbers, computes correctly and lists the numbers that are left."""
    rest = Counter(left)
    rest.subtract((a, b))
    if min(rest.values()) < 0 or (sign == "/" and not b) or _combine(a, sign, b) != result:
        return False
    return Counter(after) == rest + Counter([result])


def _ranks(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise SchoolError(f"game24: the option `holdout` is `{text}`; it must be a range of ranks such as 901-1000")
    return int(low), int(high)


def _demo_weights(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        if kind not in DEMO_KINDS:
            raise SchoolError(f"game24: unknown kind of demonstration `{kind}`{suggest(kind, DEMO_KINDS)}")
        try:
            weights[kind] = float(weight or 1)
        except ValueError:
            weights[kind] = -1.0
        if not 0 < weights[kind] < float("inf"):
            raise SchoolError(f"game24: the weight of `{kind}` is `{weight}`; it must be a number above 0")
    return weights


def _read_puzzles(path: Path) -> list[tuple[int, Numbers]]:
    """Read the rank and the numbers of each puzzle. Raises SchoolError with file and line if the file is damaged."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"Rank", "Puzzles"} <= set(rows.fieldnames or ()):
                raise SchoolError(f"{path}:1: the first line must name the columns `Rank` and `Puzzles`")
            return [_parse_puzzle(row, f"{path}:{rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SchoolError(f"cannot read {path}: {error}; give the path of a CSV file of puzzles") from error


def _parse_puzzle(row: dict[str, str], place: str) -> tuple[int, Numbers]:
    try:
        rank, left = int(row["Rank"]), tuple(sorted(Fraction(int(n)) for n in row["Puzzles"].split()))
    except (ValueError, TypeError, AttributeError):
        advice = "`Rank` must be a whole number, and `Puzzles` must be four whole numbers, as in 901,4 5 6 10"
        raise SchoolError(f"{place}: {advice}") from None
    if len(left) != 4 or not can_make_target(left):
        raise SchoolError(f"{place}: {format_numbers(left)} is not a puzzle; give four numbers that can make {TARGET}")
    return rank, left
