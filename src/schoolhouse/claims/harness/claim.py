"""A claim: arms to train, a premise, a rule written before the counted run; and the results of its arms.

A `Step` is one training run. Its config may hold other steps in the place of models. Two claims that name the same step
share its run. A `Measure` is a measurement of a trained model: an evaluation, or one of a claim's own.
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
    """A training run: keys of the recipe's own config. A Step among the values stands for its final model.

    max_tokens, max_seconds  budget: the run ends when so many tokens are sampled, or so much time is spent
    content_digest           digest of the files that the config points to
    """

    recipe: str
    config: Mapping[str, Any]
    max_tokens: float = inf
    max_seconds: float = inf
    content_digest: str = ""


class Measure(Protocol):
    """A measurement of a trained model: a frozen config, so that a stored measurement can be found again.

    judged_models  further models of the arm, by name
    """

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json: ...

    def model_dump(self, *, mode: str) -> Json: ...


class Evaluation(BaseConfig):
    """Accuracy on held-out problems, the same problems for every arm and seed."""

    task: str
    problems: int = Field(200, gt=0)
    samples: int = Field(8, gt=0)
    max_new_tokens: int = Field(128, gt=0)
    temperature: float = Field(1.0, ge=0)

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        task = open_task(self.task, seed)
        result = evaluate(policy, task, self.problems, self.samples, self.max_new_tokens, self.temperature, seed)
        return result.to_json(records=True)


@dataclass(frozen=True)
class Arm:
    """One way to train, and the measures of its model.

    step           a training run; or the folder of a model, and nothing is trained
    about          a few words: what is special about the arm
    judged_models  further models, which the measures get by name
    """

    step: Step | Path
    measures: Mapping[str, Measure]
    about: str = ""
    judged_models: Mapping[str, Step] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of one arm with one seed.

    measured        results by the names of the arm's measures
    metrics         a mapping for each step of the arm's own run
    times           seconds at the end of each step, and the seconds of its evaluation
    sampled_tokens  of that run; `seconds` are the seconds it took
    """

    measured: Mapping[str, Json]
    metrics: Sequence[Json]
    times: Sequence[Json]
    sampled_tokens: int
    seconds: float


class Point(NamedTuple):
    """An evaluation during training: steps, sampled tokens and seconds until then (evaluations not counted)."""

    steps: int
    tokens: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Check:
    """One line of a verdict: a statement, the numbers found, and whether it passes.

    `must hold` passes when the effect shows. `must fail` is an ablation or a control, and passes when it shows no
    effect. No line passes whose numbers include a nan: min and max skip it.
    """

    kind: Kind
    text: str
    found: str
    holds: bool

    def __post_init__(self) -> None:
        if self.kind != "reported" and _NAN.search(self.found):
            object.__setattr__(self, "holds", False)


@dataclass(frozen=True)
class Results:
    """Outcomes by arm and seed, and the statistics that rules are made of."""

    arms: Mapping[str, Mapping[int, Outcome]]

    @property
    def seeds(self) -> list[int]:
        """Seeds that every arm has."""
        return sorted(set.intersection(*(set(outcomes) for outcomes in self.arms.values())))

    def by_seed(self, arm: str, metric: str = "pass_at_1", measure: str = "eval") -> list[float]:
        """A metric of a measure for each seed; nan, which passes no rule, where there was nothing to measure."""
        values = [self.arms[arm][seed].measured[measure]["overall"][metric] for seed in self.seeds]
        return [nan if value is None else value for value in values]

    def mean(self, arm: str, metric: str = "pass_at_1", measure: str = "eval") -> float:
        """The mean of a metric over seeds."""
        return fmean(self.by_seed(arm, metric, measure))

    def gains(self, before: str, after: str, metric: str = "pass_at_1", measure: str = "eval") -> list[float]:
        """after - before for each seed."""
        pairs = zip(self.by_seed(before, metric, measure), self.by_seed(after, metric, measure), strict=True)
        return [b - a for a, b in pairs]

    def difference(self, before: str, after: str, measure: str = "eval") -> Estimate:
        """after - before in accuracy: the mean over seeds, with a paired interval over problems."""
        pairs = [
            (self._accuracies(before, seed, measure), self._accuracies(after, seed, measure)) for seed in self.seeds
        ]
        rows = [{problem: new[problem] - old[problem] for problem in old.keys() & new.keys()} for old, new in pairs]
        return _mean_over_seeds(rows)

    def interval(self, arm: str, measure: str = "eval") -> Estimate:
        """Accuracy: the mean over seeds, with an interval over problems."""
        return _mean_over_seeds([self._accuracies(arm, seed, measure) for seed in self.seeds])

    def _accuracies(self, arm: str, seed: int, measure: str) -> dict[str, float]:
        return _accuracy_by_problem(self.arms[arm][seed].measured[measure]["records"])

    def curves(self, arm: str, metric: str) -> list[list[float]]:
        """A metric of training: for each seed its values, step by step. Steps without it are left out."""
        return [[m[metric] for m in self.arms[arm][seed].metrics if m.get(metric) is not None] for seed in self.seeds]

    def eval_curves(self, arm: str, start: str = "") -> list[list[Point]]:
        """pass@1 before (of arm `start`, if it is here), during and after training, for each seed.

        All points are about the problems of the evaluations in training, which may be fewer than the final one has.
        """
        curves = []
        for seed in self.seeds:
            outcome = self.arms[arm][seed]
            first = []
            if start in self.arms:
                accuracy = _accuracy(self.arms[start][seed], _problems_in_training(outcome))
                first = [Point(0, 0, 0.0, accuracy)]
            curves.append([*first, *_points(outcome)])
        return curves

    def areas(self, arm: str, start: str = "start") -> list[float]:
        """pass@1 averaged over training, from the evaluation of `start` to the last one, for each seed."""
        areas = []
        for curve in self.eval_curves(arm, start):
            points = [(point.steps, point.value) for point in curve]
            parts = [(right - left) * (a + b) / 2 for (left, a), (right, b) in pairwise(points)]
            areas.append(sum(parts) / points[-1][0])
        return areas


def _mean_over_seeds(rows: Sequence[Mapping[str, float]]) -> Estimate:
    """The mean over seeds (one row each) and problems, with an interval over problems."""
    problems = sorted(set.intersection(*map(set, rows)))
    return bootstrap([fmean(row[problem] for row in rows) for problem in problems], Key(0, "claim"))


def _accuracy_by_problem(records: Sequence[Json]) -> dict[str, float]:
    """Share of correct answers to each problem, among those that could be graded."""
    graded = [(r["problem"], [reward for reward in r["rewards"] if reward is not None]) for r in records]
    return {problem: fmean(reward >= 1.0 for reward in rewards) for problem, rewards in graded if rewards}


def _problems_in_training(outcome: Outcome) -> int:
    """Problems of the evaluations in training; 0 where there were none."""
    return next((line["eval"]["problems"] for line in outcome.metrics if "eval" in line), 0)


def _accuracy(outcome: Outcome, problems: int) -> float:
    """pass@1 of the evaluation after training, on its first `problems` (0: on all)."""
    evaluation = outcome.measured["eval"]
    records = evaluation.get("records", ())
    if not problems or len(records) <= problems:
        return evaluation["overall"]["pass_at_1"]
    return fmean(_accuracy_by_problem(records[:problems]).values())


def _points(outcome: Outcome) -> list[Point]:
    points, tokens, eval_seconds = [], 0, 0.0
    times = {row["step"]: row for row in outcome.times}
    for line in outcome.metrics:
        row = times.get(line["step"], {})
        if "eval" in line:  # of the policy as it was before the step
            seconds = times.get(line["step"] - 1, {}).get("seconds", 0.0) - eval_seconds
            points.append(Point(line["step"], tokens, seconds, line["eval"]["overall"]["pass_at_1"]))
        eval_seconds += row.get("eval", 0.0)
        tokens += line.get("sampled_tokens", 0)
    last = _accuracy(outcome, _problems_in_training(outcome))
    return [*points, Point(len(outcome.metrics), outcome.sampled_tokens, outcome.seconds - eval_seconds, last)]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and its test.

    arms     (scale, seed) -> the arms by name, in the order in which they are shown; others begin from `start`
    budget   what is equal in all arms; `budget_by_scale` at other scales than tiny
    premise  without it the verdict means nothing: INVALID
    rule     in words, when the verdict is PASS; `check` is the same in code
    draw     draws the figure: (results, picture)
    failures lines for the page: why some checks fail; `failures_by_scale` at other scales than tiny
    notes    lines for the page: pilots, earlier counts, limits; `notes_by_scale` at other scales than tiny
    """

    id: str
    paper: str
    sentence: str
    budget: str
    premise: str
    rule: str
    arms: Callable[[Scale, int], Mapping[str, Arm]]
    check: Callable[[Results], Sequence[Check]]
    draw: Callable[[Results, Any], None]
    failures: Sequence[str] = ()
    notes: Sequence[str] = ()
    budget_by_scale: Mapping[Scale, str] = field(default_factory=dict)
    failures_by_scale: Mapping[Scale, Sequence[str]] = field(default_factory=dict)
    notes_by_scale: Mapping[Scale, Sequence[str]] = field(default_factory=dict)

    def budget_at(self, scale: Scale) -> str:
        return self.budget_by_scale.get(scale, self.budget)

    def failures_at(self, scale: Scale) -> Sequence[str]:
        return self.failures if scale == "tiny" else self.failures_by_scale.get(scale, ())

    def notes_at(self, scale: Scale) -> Sequence[str]:
        return self.notes if scale == "tiny" else self.notes_by_scale.get(scale, ())


def verdict(checks: Sequence[Check]) -> str:
    """INVALID where the premise is broken, else PASS if every line passes, else FAIL. `reported` lines do not count.

    Raises SchoolError for a rule without a single requirement: it could not fail.
    """
    requirements = [check for check in checks if check.kind in ("must hold", "must fail")]
    if not requirements:
        raise SchoolError("the rule of a claim has no requirement: give it a check of kind `must hold` or `must fail`")
    if not all(check.holds for check in checks if check.kind == "premise"):
        return "INVALID"
    return "PASS" if all(check.holds for check in requirements) else "FAIL"


def format_values(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Numbers of several seeds: `0.812 0.790 0.833`."""
    return " ".join(f"{value:{'+' if sign else ''}.{digits}f}" for value in values)
