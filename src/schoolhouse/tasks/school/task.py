"""The school: generated problems, demonstrations and pretraining text. All come from a seed; nothing is downloaded.

Every problem belongs to a family (one file each in this folder). One instance in ten is held out for evaluation, chosen
by its content: no seed, difficulty or wording ever shows it in training problems, demonstrations or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from random import Random
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.randomness import python_random
from schoolhouse.tasks.answers.extraction import extract_answer
from schoolhouse.tasks.answers.perturb import perturb_answer
from schoolhouse.tasks.answers.strict import strict_compare
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school import pretraining_text
from schoolhouse.tasks.school.addition import ADDITION
from schoolhouse.tasks.school.chain import CHAIN
from schoolhouse.tasks.school.column import COLUMN
from schoolhouse.tasks.school.compare import COMPARE
from schoolhouse.tasks.school.countdown import COUNTDOWN
from schoolhouse.tasks.school.facts import FACTS
from schoolhouse.tasks.school.family import FILLER_WORDS, STYLES, Family, Style, is_held_out
from schoolhouse.tasks.school.languages import LANGUAGES, translate
from schoolhouse.tasks.school.letters import LETTERS
from schoolhouse.tasks.school.longhand import LONGHAND
from schoolhouse.tasks.school.shopping import SHOPPING
from schoolhouse.types import REVISION_REQUEST, Completion, Demonstration, Key, Message, Problem, SchoolError, Verdict

FAMILIES: Mapping[str, Family[Any]] = {
    family.name: family for family in (ADDITION, CHAIN, SHOPPING, LETTERS, COMPARE, FACTS, COUNTDOWN, LONGHAND, COLUMN)
}
DEFAULT_FAMILIES = tuple(name for name in FAMILIES if name not in ("longhand", "column"))
"""Used where no family is named: `longhand` has the questions of `addition`, and `column` has parts of them."""

DEFAULT_STYLES = "no_cot=50,partial=15,full=20,self_check=10,step_repair=5"

_OPTIONS = ("styles", "revision_percent", "languages", "lines")

EVAL_PROBLEMS_PER_FAMILY = 200  # fewer where a family has no more
_PATIENCE = 5_000  # samples in a row without a new instance before a family counts as exhausted

DifficultyRange = tuple[int, int]
"""Smallest and largest value of a difficulty option. Each instance draws its own."""


@dataclass(eq=False)
class School(Task):
    """Families of problems in equal shares. `School.open` parses the options of `school:...?...`.

    difficulty        for every family, the range of each of its difficulty options
    styles            weights of the styles of demonstrations
    revision_percent  percentage of demonstrations that are second attempts
    languages         weights of toy languages for thoughts; empty: digits
    delimiter         between the steps of a thought
    """

    seed: int
    families: tuple[Family[Any], ...]
    difficulty: Mapping[str, Mapping[str, DifficultyRange]]
    styles: Mapping[Style, float]
    name: str = "school"
    revision_percent: float = 0.0
    languages: Mapping[str, float] = field(default_factory=dict)
    delimiter: str = " "

    in_process = True

    @classmethod
    def open(cls, families: str = "", seed: int = 0, **options: str) -> School:
        """The task of a spec: `families` joined by `+`, or "" for DEFAULT_FAMILIES.

        Options:
        a difficulty, such as digits=4, or digits=2-4 to mix
        styles=no_cot=70,full=30       weights of the styles of demonstrations
        revision_percent=40            percentage of demonstrations that are second attempts
        languages=latin=70,mixed=30    weights of toy languages: latin, cjk, or mixed, each step in either
        lines=1                        each step of a thought on its own line
        Raises SchoolError naming an option that is unknown or out of range.
        """
        chosen = _parse_families(families)
        options = {"styles": DEFAULT_STYLES, **options}
        styles = _parse_styles(options.pop("styles"))
        revision_percent = _parse_number(options.pop("revision_percent", "0"), "`revision_percent`")
        languages = _parse_languages(options.pop("languages", ""))
        if (lines := options.pop("lines", "0")) not in ("0", "1"):
            raise SchoolError(f"school: `lines` is `{lines}`; it must be 1 (each step on its own line) or 0")
        known = {name for family in chosen for name in family.difficulty}
        for option in options:
            if option not in known:
                raise SchoolError(f"school: unknown option `{option}`{suggest(option, sorted({*known, *_OPTIONS}))}")
        difficulty = {family.name: _parse_difficulty(family, options) for family in chosen}
        name = f"school:{families}" if families else "school"
        delimiter = "\n" if lines == "1" else " "
        return cls(seed, chosen, difficulty, styles, name, revision_percent, languages, delimiter)

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """A pure function of seed and step. A smaller count gives the first ones of a larger."""
        random = python_random(Key(self.seed, "school practice", step))
        instances = self._train_instances(random, count)
        return [self._problem(family, instance, key, random, values) for family, instance, key, values in instances]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Demonstrations in styles drawn by weight. All answers are correct except those of `systematic_error`.

        A second attempt has a first one, correct or wrong, in its prompt.
        """
        random = python_random(Key(self.seed, "school worked", step))
        styles, cumulative = list(self.styles), list(accumulate(self.styles.values()))
        demonstrations = []
        for family, instance, key, values in self._train_instances(random, count):
            (style,) = random.choices(styles, cum_weights=cumulative)
            problem = self._problem(family, instance, key, random, values)
            if self.revision_percent and random.random() < self.revision_percent / 100:
                (first_style,) = random.choices(styles, cum_weights=cumulative)
                problem = _with_first_attempt(family, instance, problem, first_style, random, self.delimiter)
            thought, answer = family.solve(instance, style, random)
            if self.languages:
                (language,) = random.choices([*self.languages], weights=[*self.languages.values()])
                thought = translate(thought, language, random)
            thought = thought.replace(" ", self.delimiter)
            demonstrations.append(Demonstration(problem, thought, f"\\boxed{{{answer}}}", style))
        return demonstrations

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Pages of synthetic text that fit these families. The people in it are the same on every page of a seed."""
        random = python_random(Key(self.seed, "school exposition", step))
        names = frozenset(family.name for family in self.families)
        return [pretraining_text.page(random, names, self.seed) for _ in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Distinct held-out problems, the same for every seed, with the families in turn.

        count  of all families together; None: 200 of each
        A family with fewer problems gives all it has; `facts` has about two dozen.
        """
        shares = len(self.families)
        sizes = [
            EVAL_PROBLEMS_PER_FAMILY if count is None else (count + shares - 1 - i) // shares for i in range(shares)
        ]
        by_family = [self._eval_problems(family, size) for family, size in zip(self.families, sizes, strict=True)]
        return [problem for turn in zip_longest(*by_family) for problem in turn if problem is not None]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Reward 1 for a correct final answer, else 0 and the reason. In countdown any correct expression counts.

        Where a difficulty option has a range, its value names a part of the reward, so that reports show it separately.
        """
        verdict = self._grade_answer(problem, completion)
        values = problem.info.get("difficulty")
        if not isinstance(values, Mapping) or verdict.reward is None:
            return verdict
        return replace(verdict, parts={f"{name} {value}": verdict.reward for name, value in values.items()})

    def _grade_answer(self, problem: Problem, completion: Completion) -> Verdict:
        family = FAMILIES[problem.family]
        answer, reason = extract_answer(completion)
        if answer is None:
            return Verdict(0.0, reason)
        if not family.accepts:
            return strict_compare(answer, problem.reference)
        return Verdict(1.0) if family.accepts(answer, problem.info) else Verdict(0.0, "not a correct expression")

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for each correct step, -1 from the first wrong one on, 0 for filler words before it."""
        family = FAMILIES.get(problem.family)
        if not family or not family.steps_checkable:
            return super().step_labels(problem, thoughts)
        expected = iter(" ".join(family.steps(problem.info["instance"], Random(0))).split())
        labels: list[int] = []
        for thought in thoughts:
            if labels[-1:] == [-1]:
                labels.append(-1)
            elif thought in FILLER_WORDS:
                labels.append(0)
            else:
                labels.append(1 if thought == next(expected, None) else -1)
        return labels

    def wrong_answer(self, problem: Problem) -> str:
        """A wrong answer of the same kind; in countdown, an expression with a number that is not given."""
        return f"{problem.reference}+0" if FAMILIES[problem.family].accepts else super().wrong_answer(problem)

    def _train_instances(self, random: Random, count: int) -> Iterator[tuple[Family[Any], Any, str, Mapping[str, int]]]:
        """`count` times a family, an instance of it that is not held out, its key and its difficulty.

        The families come in rounds, each in a new order.
        """
        order = list(self.families)
        samplers = {family.name: _difficulty_sampler(self.difficulty[family.name]) for family in order}
        for i in range(count):
            if i % len(order) == 0:
                random.shuffle(order)
            family = order[i % len(order)]
            while True:
                values = samplers[family.name](random)
                instance = family.sample(random, values)
                key = family.key(instance)
                if not is_held_out(key):
                    break
            yield family, instance, key, values

    def _eval_problems(self, family: Family[Any], size: int) -> list[Problem]:
        """Up to `size` distinct held-out problems of one family."""
        random = python_random(Key(0, f"school exam {family.name}"))
        sample_difficulty = _difficulty_sampler(self.difficulty[family.name])
        problems: dict[str, Problem] = {}
        misses = 0
        while len(problems) < size and misses < _PATIENCE:
            values = sample_difficulty(random)
            instance = family.sample(random, values)
            key = family.key(instance)
            if key in problems or not is_held_out(key):
                misses += 1
                continue
            problems[key] = self._problem(family, instance, key, random, values)
            misses = 0
        return list(problems.values())

    def _problem(
        self, family: Family[Any], instance: Any, key: str, random: Random, values: Mapping[str, int]
    ) -> Problem:
        """The problem of an instance, with what its verifier and reports need in `info`."""
        info = dict(family.grading_info(instance)) if family.grading_info else {}
        ranges = self.difficulty[family.name].items()
        if varied := {name: values[name] for name, (low, high) in ranges if low < high}:
            info["difficulty"] = varied
        question = (Message("user", family.question(instance, random)),)
        if family.steps_checkable:
            info["instance"] = instance
        return Problem(f"school:{key}", question, family.answer(instance), family.name, "school", info)


def _difficulty_sampler(ranges: Mapping[str, DifficultyRange]) -> Callable[[Random], Mapping[str, int]]:
    """A function that draws one value per difficulty option; without ranges it draws no random numbers."""
    if all(low == high for low, high in ranges.values()):
        fixed = {name: low for name, (low, _) in ranges.items()}
        return lambda random: fixed
    return lambda random: {name: random.randint(low, high) for name, (low, high) in ranges.items()}


def _with_first_attempt(
    family: Family[Any], instance: Any, problem: Problem, style: Style, random: Random, delimiter: str
) -> Problem:
    """The problem with a first attempt, wrong every other time, and the request to revise it."""
    answer = problem.reference
    thought = family.thought(instance, style, random)
    if random.random() < 0.5:
        if family.corrupt_solution:
            steps, answer = family.corrupt_solution(instance, random)
        else:
            steps, answer = [], perturb_answer(problem.reference)
        thought = "" if style == "no_cot" else " ".join(steps)
    attempt = Message("assistant", f"\\boxed{{{answer}}}", thought.replace(" ", delimiter))
    return replace(problem, messages=(*problem.messages, attempt, Message("user", REVISION_REQUEST)))


# ---- parsing options


def _parse_families(text: str) -> tuple[Family[Any], ...]:
    """`addition+chain` -> these families; "" -> DEFAULT_FAMILIES."""
    names = text.split("+") if text else DEFAULT_FAMILIES
    for name in names:
        if name not in FAMILIES:
            raise SchoolError(f"school: unknown family `{name}`{suggest(name, list(FAMILIES))}")
    return tuple(FAMILIES[name] for name in dict.fromkeys(names))


def _parse_styles(text: str) -> dict[Style, float]:
    """`no_cot=70,full=30` -> weights, in the order of STYLES."""
    weights = _parse_weights(text, "style", STYLES)
    return {style: weights[style] for style in STYLES if style in weights}


def _parse_languages(text: str) -> dict[str, float]:
    """`latin=70,mixed=30` -> weights; "" -> {}."""
    return _parse_weights(text, "language", (*LANGUAGES, "mixed")) if text else {}


def _parse_weights(text: str, kind: str, known: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in known:
            raise SchoolError(f"school: unknown {kind} `{name}`{suggest(name, known)}")
        weights[name] = _parse_number(weight, f"{kind}s: the weight of `{name}`")
    if not sum(weights.values()) > 0:
        raise SchoolError(f"school: all weights of {kind}s `{text}` are 0; give at least one a weight above 0")
    return weights


def _parse_number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise SchoolError(f"school: {what} is `{text}`; it must be a number, 0 or more (styles={DEFAULT_STYLES})")
    return value


def _parse_difficulty(family: Family[Any], options: Mapping[str, str]) -> dict[str, DifficultyRange]:
    """The range of each difficulty option of a family: `4` is 4 to 4, `2-4` is 2 to 4; without one, the default."""
    ranges = {}
    for name, difficulty in family.difficulty.items():
        text = options.get(name, str(difficulty.default))
        first, dash, last = text.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 0, -1
        if not difficulty.minimum <= low <= high <= difficulty.maximum:
            limits = f"{difficulty.minimum} to {difficulty.maximum}"
            raise SchoolError(
                f"school: {family.name}: `{name}` ({difficulty.meaning}) is `{text}`; it must be a whole number or a "
                f"range such as {difficulty.minimum}-{difficulty.maximum}, within {limits}"
            )
        ranges[name] = (low, high)
    return ranges
