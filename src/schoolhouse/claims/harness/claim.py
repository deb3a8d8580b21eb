"""What a claim is: arms to run, a premise, a rule written beforehand. And what running them gave.

A `Step` is one training run. Its config may hold other steps in the place of models; two claims that name the same
step share its run. A `Measure` asks a trained model something: an exam, or a claim's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field

from schoolhouse.config import BaseConfig
from schoolhouse.eval.evaluate import evaluate
from schoolhouse.eval.statistics import Estimate, bootstrap
from schoolhouse.policy.policy import Policy
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, SchoolError

Json = dict[str, Any]
Scale = Literal["tiny", "small", "gpu"]
Kind = Literal["premise", "must hold", "must fail", "reported"]
_NAN = re.compile(r"\bnan\b")


@dataclass(frozen=True)
class Step:
    """A training run: keys of the recipe's own config; a Step among them stands for the model it ends with.

    tokens, seconds  end it when the policy has sampled so much, or so long
    made_from        names what stands in files that the config points to
    """

    recipe: str
    config: Mapping[str, Any]
    tokens: float = inf
    seconds: float = inf
    made_from: str = ""


class Measure(Protocol):
    """Something to ask a trained model. A frozen config, so that what was answered need not be asked again.

    `beside` are other models that it needs, those of the arm.
    """

    def run(self, policy: Policy, seed: int, **beside: Policy) -> Json: ...

    def model_dump(self, *, mode: str) -> Json: ...


class Evaluation(BaseConfig):
    """Answers to held-out problems, the same for every arm and seed."""

    task: str
    problems: int = Field(200, gt=0)
    samples: int = Field(8, gt=0)
    max_new_tokens: int = Field(128, gt=0)
    temperature: float = Field(1.0, ge=0)

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        task = open_task(self.task, seed)
        sat = evaluate(policy, task, self.problems, self.samples, self.max_new_tokens, self.temperature, seed)
        return sat.to_json(records=True)


@dataclass(frozen=True)
class Arm:
    """One way to train, and what is asked of its model. `about` says in a few words what is special about it.

    `step` may be the folder of a model that is there: nothing is trained then. `beside` holds other models that its
    measures are given by name.
    """

    step: Step | Path
    measures: Mapping[str, Measure]
    about: str = ""
    beside: Mapping[str, Step] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one arm gave with one seed.

    measured  by the names of the arm's measures
    metrics   a mapping per step of the arm's own run
    times     seconds at the end of each step, and what its exam took
    tokens    the policy sampled in that run; seconds it took
    """

    measured: Mapping[str, Json]
    metrics: Sequence[Json]
    times: Sequence[Json]
    tokens: int
    seconds: float


class Point(NamedTuple):
    """An exam in the course of training: steps done, tokens sampled and seconds spent (exams aside) until then."""

    steps: int
    tokens: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Check:
    """One line of a verdict: what was asked, what was found, and whether it held. No demand holds whose `found` tells
    of a nan: the smallest and the largest of several numbers pass over it."""

    kind: Kind
    text: str
    found: str
    holds: bool

    def __post_init__(self) -> None:
        if self.kind != "reported" and _NAN.search(self.found):
            object.__setattr__(self, "holds", False)


@dataclass(frozen=True)
class Results:
    """Outcomes by arm and seed, and the questions that rules ask of them."""

    arms: Mapping[str, Mapping[int, Outcome]]

    @property
    def seeds(self) -> list[int]:
        return sorted(set.intersection(*(set(outcomes) for outcomes in self.arms.values())))

    def each(self, arm: str, metric: str = "pass_at_1", measure: str = "exam") -> list[float]:
        """A metric of an exam, seed by seed; nan, which no rule holds for, where there was nothing to measure."""
        found = [self.arms[arm][seed].measured[measure]["overall"][metric] for seed in self.seeds]
        return [nan if value is None else value for value in found]

    def mean(self, arm: str, metric: str = "pass_at_1", measure: str = "exam") -> float:
        return fmean(self.each(arm, metric, measure))

    def gains(self, before: str, after: str, metric: str = "pass_at_1", measure: str = "exam") -> list[float]:
        """after - before, seed by seed."""
        pairs = zip(self.each(before, metric, measure), self.each(after, metric, measure), strict=True)
        return [b - a for a, b in pairs]

    def difference(self, before: str, after: str, measure: str = "exam") -> Estimate:
        """after - before in the share of right answers, its mean over seeds, with a paired interval over problems."""
        pairs = [(self._shares(before, seed, measure), self._shares(after, seed, measure)) for seed in self.seeds]
        rows = [{problem: now[problem] - then[problem] for problem in then.keys() & now.keys()} for then, now in pairs]
        problems = sorted(set.intersection(*map(set, rows)))
        return bootstrap([fmean(row[problem] for row in rows) for problem in problems], Key(0, "claim"))

    def interval(self, arm: str, measure: str = "exam") -> Estimate:
        """Share of right answers, its mean over seeds, with an interval over problems."""
        rows = [self._shares(arm, seed, measure) for seed in self.seeds]
        problems = sorted(set.intersection(*map(set, rows)))
        return bootstrap([fmean(row[problem] for row in rows) for problem in problems], Key(0, "claim"))

    def _shares(self, arm: str, seed: int, measure: str) -> dict[str, float]:
        return _shares(self.arms[arm][seed].measured[measure]["records"])

    def course(self, arm: str, metric: str) -> list[list[float]]:
        """A metric of training, a row of steps for each seed; steps without it are left out."""
        return [[m[metric] for m in self.arms[arm][seed].metrics if m.get(metric) is not None] for seed in self.seeds]

    def exams(self, arm: str, start: str = "") -> list[list[Point]]:
        """pass@1 of `start`, if given, of exams sat in training, and of the one after it, for each seed: all of them
        about the problems of those in training, which may be fewer (and easier) than the others ask."""
        rows = []
        for seed in self.seeds:
            outcome = self.arms[arm][seed]
            before = [Point(0, 0, 0.0, _share(self.arms[start][seed], _asked(outcome)))] if start in self.arms else []
            rows.append([*before, *_points(outcome)])
        return rows

    def areas(self, arm: str, start: str = "start") -> list[float]:
        """pass@1 averaged over training, from the exam of `start` to the last one, seed by seed."""
        found = []
        for row in self.exams(arm, start):
            points = [(point.steps, point.value) for point in row]
            parts = [(right - left) * (a + b) / 2 for (left, a), (right, b) in pairwise(points)]
            found.append(sum(parts) / points[-1][0])
        return found


def _shares(records: Sequence[Json]) -> dict[str, float]:
    """Share of right answers by problem, of those that could be judged."""
    judged = [(r["problem"], [score for score in r["scores"] if score is not None]) for r in records]
    return {problem: fmean(score >= 1.0 for score in scores) for problem, scores in judged if scores}


def _asked(outcome: Outcome) -> int:
    """Problems of the exams sat in training; 0 where there were none."""
    return next((line["exam"]["problems"] for line in outcome.metrics if "exam" in line), 0)


def _share(outcome: Outcome, problems: int) -> float:
    """pass@1 of the exam behind training, about its first `problems` (0: about all)."""
    exam = outcome.measured["exam"]
    records = exam.get("records", ())
    if not problems or len(records) <= problems:
        return exam["overall"]["pass_at_1"]
    return fmean(_shares(records[:problems]).values())


def _points(outcome: Outcome) -> list[Point]:
    found, tokens, aside = [], 0, 0.0
    taken = {row["step"]: row for row in outcome.times}
    for line in outcome.metrics:
        row = taken.get(line["step"], {})
        if "exam" in line:  # sat before the step, of the policy as it was
            before = taken.get(line["step"] - 1, {}).get("seconds", 0.0)
            found.append(Point(line["step"], tokens, before - aside, line["exam"]["overall"]["pass_at_1"]))
        aside += row.get("exam", 0.0)
        tokens += line.get("sampled_tokens", 0)
    last = _share(outcome, _asked(outcome))
    return [*found, Point(len(outcome.metrics), outcome.tokens, outcome.seconds - aside, last)]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and how it is put to the test.

    arms     (scale, seed) -> the arms by name, in the order in which they are shown; `start` is what others start from
    budget   what is equal in all arms; `budgets` at other scales than tiny
    premise  what must be so for the verdict to mean anything; broken: INVALID
    rule     when the verdict is PASS, in words; `judge` is the same in code
    draw     draws the figure: (results, picture)
    notes    lines for the page: what pilots fixed, what was found since; `elsewhere` at other scales than tiny
    """

    id: str
    paper: str
    sentence: str
    budget: str
    premise: str
    rule: str
    arms: Callable[[Scale, int], Mapping[str, Arm]]
    judge: Callable[[Results], Sequence[Check]]
    draw: Callable[[Results, Any], None]
    notes: Sequence[str] = field(default=())
    budgets: Mapping[Scale, str] = field(default_factory=dict)
    elsewhere: Mapping[Scale, Sequence[str]] = field(default_factory=dict)

    def budget_at(self, scale: Scale) -> str:
        return self.budgets.get(scale, self.budget)

    def notes_at(self, scale: Scale) -> Sequence[str]:
        return self.notes if scale == "tiny" else self.elsewhere.get(scale, ())


def verdict(checks: Sequence[Check]) -> str:
    """INVALID where the premise is broken, else PASS if everything held, else FAIL. What is `reported` decides nothing.

    Raises SchoolError for a rule without a single demand: it could not fail.
    """
    demands = [check for check in checks if check.kind in ("must hold", "must fail")]
    if not demands:
        raise SchoolError("a claim must demand something")
    if not all(check.holds for check in checks if check.kind == "premise"):
        return "INVALID"
    return "PASS" if all(check.holds for check in demands) else "FAIL"


def told(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Numbers of several seeds: `.812 .790 .833`."""
    return " ".join(f"{value:{'+' if sign else ''}.{digits}f}" for value in values)
