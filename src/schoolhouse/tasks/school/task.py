"""The embedded curriculum: problems, worked examples and a textbook, made from a seed. Nothing is read or downloaded.

Every problem belongs to a family (`lessons/`, one file each). One instance in ten is kept for the exam, by its content:
no seed, dial or wording ever shows it in practice, worked examples or the textbook.
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
from schoolhouse.tasks.answer_match import answer_match, extract, perturb
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school import pretraining_text
from schoolhouse.tasks.school.addition import ADDITION
from schoolhouse.tasks.school.chain import CHAIN
from schoolhouse.tasks.school.column import COLUMN
from schoolhouse.tasks.school.compare import COMPARE
from schoolhouse.tasks.school.countdown import COUNTDOWN
from schoolhouse.tasks.school.facts import FACTS
from schoolhouse.tasks.school.family import FILLER_WORDS, STYLES, Family, Style, held_out
from schoolhouse.tasks.school.languages import LANGUAGES, spoken
from schoolhouse.tasks.school.letters import LETTERS
from schoolhouse.tasks.school.longhand import LONGHAND
from schoolhouse.tasks.school.shopping import SHOPPING
from schoolhouse.types import REVISION_REQUEST, Completion, Demonstration, Key, Message, Problem, SchoolError, Verdict

FAMILIES: Mapping[str, Family[Any]] = {
    family.name: family for family in (ADDITION, CHAIN, SHOPPING, LETTERS, COMPARE, FACTS, COUNTDOWN, LONGHAND, COLUMN)
}
CURRICULUM = tuple(name for name in FAMILIES if name not in ("longhand", "column"))
"""Taught where no family is named: `longhand` asks what `addition` asks, and `column` is a part of it."""

DEFAULT_STYLES = "no_cot=50,partial=15,full=20,self_check=10,step_repair=5"

_OPTIONS = ("styles", "revision_percent", "languages", "lines")

EVAL_SIZE = 200  # problems of each family, where it has so many
_PATIENCE = 5_000  # instances in a row that bring nothing new before a family counts as exhausted

Range = tuple[int, int]
"""Least and most value of a dial; each instance draws its own."""


@dataclass(eq=False)
class School(Task):
    """Families of problems in equal shares. `School.open` reads the options that `school:...?...` takes.

    families  what is taught
    dials     for every family, the range of each of its dials
    hands     weights of the styles of worked examples
    again     percent of worked examples that are second attempts
    tongues   weights of the toy languages that thoughts are worked in; none: digits
    delimiter between the steps of a thought
    """

    seed: int
    families: tuple[Family[Any], ...]
    dials: Mapping[str, Mapping[str, Range]]
    styles: Mapping[Style, float]
    name: str = "school"
    revision_percent: float = 0.0
    languages: Mapping[str, float] = field(default_factory=dict)
    delimiter: str = " "

    in_process = True

    @classmethod
    def open(cls, families: str = "", seed: int = 0, **options: str) -> School:
        """`families` joined by `+` ("": CURRICULUM). Options: a dial (`digits=4`, or `digits=2-4` to mix) and
        `hands` (`styles=no_cot=70,full=30`: relative weights), `revision_percent=40`: percent of them that are second tries;
        `languages=latin=70,mixed=30`: thoughts in toy languages (latin, cjk, or every step in either); `lines=1`: a line
        for each step.
        Raises SchoolError naming what is unknown or out of range.
        """
        chosen = _families(families)
        options = {"styles": DEFAULT_STYLES, **options}
        hands, again = (
            _hands(options.pop("styles")),
            _number(options.pop("revision_percent", "0"), "`revision_percent`"),
        )
        tongues = _tongues(options.pop("languages", ""))
        if (lines := options.pop("lines", "0")) not in ("0", "1"):
            raise SchoolError(f"school: `lines` is `{lines}`; give 1 for a line for each step, or 0")
        known = {dial for family in chosen for dial in family.dials}
        for option in options:
            if option not in known:
                raise SchoolError(f"school: unknown option `{option}`{suggest(option, sorted({*known, *_OPTIONS}))}")
        dials = {family.name: _dials(family, options) for family in chosen}
        name = f"school:{families}" if families else "school"
        return cls(seed, chosen, dials, hands, name, again, tongues, "\n" if lines == "1" else " ")

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """Practice: a pure function of (seed, step), and fewer are the first of more."""
        random = python_random(Key(self.seed, "school practice", step))
        drawn = self._practice(random, count)
        return [self._problem(family, instance, key, random, at) for family, instance, key, at in drawn]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Worked examples by hands drawn with their weights. The last word is always right, save by the hand `systematic_error`.

        `again` percent of them are second attempts: a first one, right or wrong, is part of what is asked.
        """
        random = python_random(Key(self.seed, "school worked", step))
        hands, upto = list(self.styles), list(accumulate(self.styles.values()))
        examples = []
        for family, instance, key, at in self._practice(random, count):
            (hand,) = random.choices(hands, cum_weights=upto)
            problem = self._problem(family, instance, key, random, at)
            if self.revision_percent and random.random() < self.revision_percent / 100:
                problem = _asked_again(family, instance, problem, hands, upto, random, self.delimiter)
            thought, answer = family.solve(instance, hand, random)
            if self.languages:
                (tongue,) = random.choices([*self.languages], weights=[*self.languages.values()])
                thought = spoken(thought, tongue, random)
            thought = thought.replace(" ", self.delimiter)
            examples.append(Demonstration(problem, thought, f"\\boxed{{{answer}}}", hand))
        return examples

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Pages of the textbook that go with these families; people in it are the same on every page of a seed."""
        random = python_random(Key(self.seed, "school exposition", step))
        names = frozenset(family.name for family in self.families)
        return [pretraining_text.page(random, names, self.seed) for _ in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Held-out problems, distinct, the same for every seed. `count` in all (None: 200 of each family), families in
        turn; a family with fewer (`facts` has about two dozen) gives what it has."""
        shares = len(self.families)
        wanted = [EVAL_SIZE if count is None else (count + shares - 1 - i) // shares for i in range(shares)]
        papers = [self._paper(family, size) for family, size in zip(self.families, wanted, strict=True)]
        return [problem for round_ in zip_longest(*papers) for problem in round_ if problem is not None]

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        """1 for a right final answer, else 0 and why; in countdown any right expression counts.

        Where a dial has a range its value is a part of the score, so that reports tell hard problems from easy ones.
        """
        verdict = self._judged(problem, reply)
        values = problem.info.get("dials")
        if not isinstance(values, Mapping) or verdict.reward is None:
            return verdict
        return replace(verdict, parts={f"{name} {value}": verdict.reward for name, value in values.items()})

    def _judged(self, problem: Problem, reply: Completion) -> Verdict:
        family = FAMILIES[problem.family]
        if not family.accepts:
            return answer_match(reply, problem.reference)
        answer, reason = extract(reply)
        if answer is None:
            return Verdict(0.0, reason)
        return Verdict(1.0) if family.accepts(answer, problem.info) else Verdict(0.0, "not a right expression")

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for each step up to the first that is not what it should be, -1 from there on; 0 for idle words before."""
        family = FAMILIES.get(problem.family)
        if not family or not family.strict:
            return super().step_labels(problem, thoughts)
        expected = iter(" ".join(family.steps(problem.info["instance"], Random(0))).split())
        ratings: list[int] = []
        for thought in thoughts:
            wrong = -1 in ratings[-1:]
            ratings.append(
                -1 if wrong else 0 if thought in FILLER_WORDS else 1 if thought == next(expected, None) else -1
            )
        return ratings

    def wrong_answer(self, problem: Problem) -> str:
        """A wrong answer of the same kind: in countdown an expression with a number that is not given."""
        return f"{problem.reference}+0" if FAMILIES[problem.family].accepts else super().wrong_answer(problem)

    def _practice(self, random: Random, count: int) -> Iterator[tuple[Family[Any], Any, str, Mapping[str, int]]]:
        """`count` times a family, an instance of it that is not held out, its key and its dials; each round in a new
        order."""
        order = list(self.families)
        settings = {family.name: _setting(self.dials[family.name]) for family in order}
        for i in range(count):
            if i % len(order) == 0:
                random.shuffle(order)
            family = order[i % len(order)]
            while True:
                at = settings[family.name](random)
                instance = family.make(random, at)
                key = family.key(instance)
                if not held_out(key):
                    break
            yield family, instance, key, at

    def _paper(self, family: Family[Any], size: int) -> list[Problem]:
        """Up to `size` distinct held-out problems of one family."""
        random = python_random(Key(0, f"school exam {family.name}"))
        setting = _setting(self.dials[family.name])
        found: dict[str, Problem] = {}
        missed = 0
        while len(found) < size and missed < _PATIENCE:
            at = setting(random)
            instance = family.make(random, at)
            key = family.key(instance)
            if key in found or not held_out(key):
                missed += 1
                continue
            found[key] = self._problem(family, instance, key, random, at)
            missed = 0
        return list(found.values())

    def _problem(
        self, family: Family[Any], instance: Any, key: str, random: Random, dials: Mapping[str, int]
    ) -> Problem:
        info = family.info(instance) if family.info else {}
        varied = {name: dials[name] for name, (least, most) in self.dials[family.name].items() if least < most}
        question = (Message("user", family.ask(instance, random)),)
        info = {**info, **({"dials": varied} if varied else {}), **({"instance": instance} if family.strict else {})}
        return Problem(f"school:{key}", question, family.answer(instance), family.name, "school", info)


def _setting(ranges: Mapping[str, Range]) -> Callable[[Random], Mapping[str, int]]:
    """One value per dial for each instance."""
    if all(least == most for least, most in ranges.values()):
        fixed = {name: least for name, (least, _) in ranges.items()}
        return lambda random: fixed
    return lambda random: {name: random.randint(least, most) for name, (least, most) in ranges.items()}


def _asked_again(
    family: Family[Any],
    instance: Any,
    problem: Problem,
    hands: list[Style],
    upto: list[float],
    random: Random,
    delimiter: str,
) -> Problem:
    """The problem with a first attempt behind it, every other time a wrong one, and the request to look again."""
    answer = problem.reference
    (hand,) = random.choices(hands, cum_weights=upto)
    thought = family.work(instance, hand, random)
    if random.random() < 0.5:
        steps, answer = (
            family.corrupt_solution(instance, random) if family.corrupt_solution else ([], perturb(problem.reference))
        )
        thought = "" if hand == "no_cot" else " ".join(steps)
    tried = Message("assistant", f"\\boxed{{{answer}}}", thought.replace(" ", delimiter))
    return replace(problem, messages=(*problem.messages, tried, Message("user", REVISION_REQUEST)))


# ---- reading options


def _families(text: str) -> tuple[Family[Any], ...]:
    """`addition+chain` -> these families; nothing -> all."""
    names = text.split("+") if text else CURRICULUM
    for name in names:
        if name not in FAMILIES:
            raise SchoolError(f"school: unknown family `{name}`{suggest(name, list(FAMILIES))}")
    return tuple(FAMILIES[name] for name in dict.fromkeys(names))


def _hands(text: str) -> dict[Style, float]:
    """`bare=70,full=30` -> weights; a hand that is not named does nothing."""
    given = _weights(text, "style", STYLES)
    return {hand: given[hand] for hand in STYLES if hand in given}


def _tongues(text: str) -> dict[str, float]:
    """`latin=70,mixed=30` -> weights; nothing -> {}."""
    return _weights(text, "language", (*LANGUAGES, "mixed")) if text else {}


def _weights(text: str, kind: str, known: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in known:
            raise SchoolError(f"school: unknown {kind} `{name}`{suggest(name, known)}")
        weights[name] = _number(weight, f"{kind}s: the weight of `{name}`")
    if not sum(weights.values()) > 0:
        raise SchoolError(f"school: {kind}s `{text}` weigh nothing; give at least one a weight above 0")
    return weights


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise SchoolError(f"school: {what} is `{text}`; it must be a number, 0 or more (styles={DEFAULT_STYLES})")
    return value


def _dials(family: Family[Any], options: Mapping[str, str]) -> dict[str, Range]:
    """The range of each dial of a family: `4` is 4 to 4, `2-4` is 2 to 4, without an option the default."""
    ranges = {}
    for name, dial in family.dials.items():
        text = options.get(name, str(dial.default))
        least, dash, most = text.partition("-")
        try:
            low, high = int(least), int(most if dash else least)
        except ValueError:
            low, high = 0, -1
        if not dial.least <= low <= high <= dial.most:
            raise SchoolError(
                f"school: {family.name}'s dial `{name}` ({dial.meaning}) is `{text}`; it must be a whole number or a "
                f"range such as {dial.least}-{dial.most}, within {dial.least} to {dial.most}"
            )
        ranges[name] = (low, high)
    return ranges
