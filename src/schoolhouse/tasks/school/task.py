"""The task `school`: problems, demonstrations and pretraining text, which are all generated from a seed.

Nothing is downloaded. Every problem belongs to a family; each family has a file in this folder. One in ten problems is
held out for evaluation. The content of a problem decides whether it is held out. A held-out problem never appears in
training problems, demonstrations or pretraining text, with any seed, difficulty or wording.
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
"""The families of a task that names no family. Two families are left out: `longhand` has the same questions as
`addition`, and `column` has parts of these questions."""

DEFAULT_STYLES = "no_cot=50,partial=15,full=20,self_check=10,step_repair=5"

_OPTIONS = ("styles", "revision_percent", "languages", "lines")

EVAL_PROBLEMS_PER_FAMILY = 200  # fewer where a family has no more
_PATIENCE = 5_000  # samples in a row without a new instance before a family counts as exhausted

DifficultyRange = tuple[int, int]
"""The smallest and the largest value of a difficulty option. Each instance draws its own value."""


@dataclass(eq=False)
class School(Task):
    """The task `school`. Each family (kind of problems) gives the same share of the problems.

    The method `School.open` parses the options of a task such as `school:addition?digits=4`.

    `difficulty` has, for every family, the range of each difficulty option.
    `styles` has the weights of the styles of demonstrations.
    `revision_percent` is the percentage of demonstrations that are second attempts.
    `languages` has the weights of toy languages for thoughts. If `languages` is empty, thoughts use digits.
    `delimiter` is the text between the steps of a thought.
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
        """Open the task with some families (kinds of problems). The argument `families` has their names, joined by `+`.

        If `families` is the empty string, the task has the families in DEFAULT_FAMILIES. The task has these options:
        `digits=4` or `digits=2-4` sets the value or the range of a difficulty option, such as `digits`.
        `styles=no_cot=70,full=30` sets the weights of the styles of demonstrations.
        `revision_percent=40` sets the percentage of demonstrations that are second attempts.
        `languages=latin=70,mixed=30` sets the weights of the toy languages latin, cjk and mixed (random in each step).
        `lines=1` writes each step of a thought on its own line.

        Raises SchoolError if an option is unknown or out of range; the message names the option.
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
        """Return `count` training problems, which depend only on the seed and `step`.

        With a smaller `count`, the result is the beginning of the result with a larger `count`.
        """
        random = python_random(Key(self.seed, "school practice", step))
        instances = self._train_instances(random, count)
        return [self._problem(family, instance, key, random, values) for family, instance, key, values in instances]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return `count` demonstrations. The style of each demonstration is drawn by its weight.

        All answers are correct, except in the style `systematic_error`. The prompt of a second attempt contains a first
        attempt, which can be correct or wrong.
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
        """Return pages of synthetic text that fit the families (kinds of problems) of the task.

        With the same seed, all pages describe the same invented people.
        """
        random = python_random(Key(self.seed, "school exposition", step))
        names = frozenset(family.name for family in self.families)
        return [pretraining_text.page(random, names, self.seed) for _ in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Return distinct held-out problems.

        The problems are the same for every seed, and their families (kinds of problems) alternate.

        The argument `count` is the number of problems of all families together. If `count` is None, each family gives
        200 problems. A family with fewer than 200 held-out problems gives all of them. The family `facts` has only
        about 24 held-out problems.
        """
        shares = len(self.families)
        sizes = [
            EVAL_PROBLEMS_PER_FAMILY if count is None else (count + shares - 1 - i) // shares for i in range(shares)
        ]
        by_family = [self._eval_problems(family, size) for family, size in zip(self.families, sizes, strict=True)]
        return [problem for turn in zip_longest(*by_family) for problem in turn if problem is not None]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the final answer is correct, otherwise reward 0 and the reason.

        In the family `countdown`, every correct expression gets reward 1. If a difficulty option has a range, the
        verdict also stores the reward under the value of the option, such as `digits 4`. Reports then show each
        difficulty separately.
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
        """Label each step of a thought. A correct step gets 1. The first wrong step and all steps after it get -1.

        A filler word (such as `well`) before the first wrong step gets 0.
        """
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
        """Return a wrong answer that looks like the reference.

        In the family `countdown`, the wrong answer is an expression with a number that is not given.
        """
        return f"{problem.reference}+0" if FAMILIES[problem.family].accepts else super().wrong_answer(problem)

    def _train_instances(self, random: Random, count: int) -> Iterator[tuple[Family[Any], Any, str, Mapping[str, int]]]:
        """Draw `count` instances (problems) that are not held out.

        Yields the family (kind of problem), the instance, its key and its difficulty. Each round has one problem of
        every family, in a new random order.
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
        """Return up to `size` distinct held-out problems of one family (kind of problems)."""
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
        """Make a problem from an instance (the numbers or words of the problem).

        The field `info` contains the data that the verifier and reports need.
        """
        info = dict(family.grading_info(instance)) if family.grading_info else {}
        ranges = self.difficulty[family.name].items()
        if varied := {name: values[name] for name, (low, high) in ranges if low < high}:
            info["difficulty"] = varied
        question = (Message("user", family.question(instance, random)),)
        if family.steps_checkable:
            info["instance"] = instance
        return Problem(f"school:{key}", question, family.answer(instance), family.name, "school", info)


def _difficulty_sampler(ranges: Mapping[str, DifficultyRange]) -> Callable[[Random], Mapping[str, int]]:
    """Return a function that draws one value for each difficulty option.

    If no option has a range, the function uses no random numbers.
    """
    if all(low == high for low, high in ranges.values()):
        fixed = {name: low for name, (low, _) in ranges.items()}
        return lambda random: fixed
    return lambda random: {name: random.randint(low, high) for name, (low, high) in ranges.items()}


def _with_first_attempt(
    family: Family[Any], instance: Any, problem: Problem, style: Style, random: Random, delimiter: str
) -> Problem:
    """Add a first attempt and a request for revision to a problem. Half of the first attempts are wrong."""
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
    """Parse the names of families, such as `addition+chain`. The empty string gives DEFAULT_FAMILIES."""
    names = text.split("+") if text else DEFAULT_FAMILIES
    for name in names:
        if name not in FAMILIES:
            raise SchoolError(f"school: unknown family `{name}`{suggest(name, list(FAMILIES))}")
    return tuple(FAMILIES[name] for name in dict.fromkeys(names))


def _parse_styles(text: str) -> dict[Style, float]:
    """Parse the weights of demonstration styles, such as `no_cot=70,full=30`. The result is in the order of STYLES."""
    weights = _parse_weights(text, "style", STYLES)
    return {style: weights[style] for style in STYLES if style in weights}


def _parse_languages(text: str) -> dict[str, float]:
    """Parse the weights of toy languages, such as `latin=70,mixed=30`. The empty string gives no weights."""
    return _parse_weights(text, "language", (*LANGUAGES, "mixed")) if text else {}


def _parse_weights(text: str, kind: str, known: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in known:
            raise SchoolError(f"school: unknown {kind} `{name}`{suggest(name, known)}")
        weights[name] = _parse_number(weight, f"{kind}s: the weight of `{name}`")
    if not sum(weights.values()) > 0:
        raise SchoolError(f"school: all weights of {kind}s `{text}` are 0; set at least one weight above 0")
    return weights


def _parse_number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise SchoolError(f"school: {what} is `{text}`; give a number of 0 or more, as in styles={DEFAULT_STYLES}")
    return value


def _parse_difficulty(family: Family[Any], options: Mapping[str, str]) -> dict[str, DifficultyRange]:
    """Parse the range of each difficulty option of a family.

    The value `4` means the range from 4 to 4. The value `2-4` means the range from 2 to 4. If an option is not given,
    its default is used.
    """
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
