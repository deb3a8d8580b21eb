"""The definition of a claim: arms to train, a premise, and a rule that was written before the official run.

A `Step` is one training run. The config of a step can name other steps instead of models. If two claims name the same
step, both claims share one run. A `Measure` is a measurement of a trained model, for example an evaluation.
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
    """A training run, described by config keys of its recipe. If a config value is a Step, the value means the final
    model of that step.

    max_tokens      the budget of sampled tokens; the run ends after this number of tokens.
    max_seconds     the budget of time; the run ends after this number of seconds.
    content_digest  a digest of the files that the config names.
    """

    recipe: str
    config: Mapping[str, Any]
    max_tokens: float = inf
    max_seconds: float = inf
    content_digest: str = ""


class Measure(Protocol):
    """A measurement of a trained model. A measure is an immutable config, and the stored result of a measure is found
    by its config.

    judged_models  the other models of the arm, by name.
    """

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json: ...

    def model_dump(self, *, mode: str) -> Json: ...


class Evaluation(BaseConfig):
    """The accuracy on held-out problems. All arms and seeds use the same problems."""

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
    """One way to train a model, and the measurements of the trained model.

    step           a training run, or the folder of a model that is not trained.
    about          a short description of the arm.
    judged_models  other models that the measures receive by name.
    """

    step: Step | Path
    measures: Mapping[str, Measure]
    about: str = ""
    judged_models: Mapping[str, Step] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of one arm with one seed.

    measured        the results of the arm's measures, by the name of the measure.
    metrics         the metrics of each training step of the arm's run.
    times           the seconds at the end of each step, and the seconds of the step's evaluation.
    sampled_tokens  the number of tokens that the arm's run sampled.
    seconds         the duration of the arm's run.
    """

    measured: Mapping[str, Json]
    metrics: Sequence[Json]
    times: Sequence[Json]
    sampled_tokens: int
    seconds: float


class Point(NamedTuple):
    """An evaluation during training, and the steps, tokens and seconds of training before the evaluation."""

    steps: int
    tokens: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Check:
    """One check of a verdict: a statement, the numbers that were found, and whether the check passes.

    A `must hold` check passes if the effect is there. A `must fail` check tests an ablation or a control, and passes if
    there is no effect. A check never passes if one of its numbers is nan, because min and max can hide a nan.
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
    """The results of all arms and seeds, with methods for the statistics that the rules of claims need."""

    arms: Mapping[str, Mapping[int, Outcome]]

    @property
    def seeds(self) -> list[int]:
        """The seeds that every arm has."""
        return sorted(set.intersection(*(set(outcomes) for outcomes in self.arms.values())))

    def by_seed(self, arm: str, metric: str = "pass_at_1", measure: str = "eval") -> list[float]:
        """The values of one metric of a measurement, with one value for each seed. The value is nan if the seed does
        not have the metric."""
        values = [self.arms[arm][seed].measured[measure]["overall"][metric] for seed in self.seeds]
        return [nan if value is None else value for value in values]

    def mean(self, arm: str, metric: str = "pass_at_1", measure: str = "eval") -> float:
        """The mean of a metric over seeds."""
        return fmean(self.by_seed(arm, metric, measure))

    def gains(self, before: str, after: str, metric: str = "pass_at_1", measure: str = "eval") -> list[float]:
        """The metric of arm `after` minus the metric of arm `before`, for each seed."""
        pairs = zip(self.by_seed(before, metric, measure), self.by_seed(after, metric, measure), strict=True)
        return [b - a for a, b in pairs]

    def difference(self, before: str, after: str, measure: str = "eval") -> Estimate:
        """The accuracy of `after` minus the accuracy of `before`, as a mean over seeds.

        The confidence interval is over problems and paired by problem.
        """
        pairs = [
            (self._accuracies(before, seed, measure), self._accuracies(after, seed, measure)) for seed in self.seeds
        ]
        rows = [{problem: new[problem] - old[problem] for problem in old.keys() & new.keys()} for old, new in pairs]
        return _mean_over_seeds(rows)

    def interval(self, arm: str, measure: str = "eval") -> Estimate:
        """The mean accuracy over seeds, with a confidence interval over problems."""
        return _mean_over_seeds([self._accuracies(arm, seed, measure) for seed in self.seeds])

    def _accuracies(self, arm: str, seed: int, measure: str) -> dict[str, float]:
        return _accuracy_by_problem(self.arms[arm][seed].measured[measure]["records"])

    def curves(self, arm: str, metric: str) -> list[list[float]]:
        """For each seed, the values of a training metric at each step. Steps without the metric are omitted."""
        return [[m[metric] for m in self.arms[arm][seed].metrics if m.get(metric) is not None] for seed in self.seeds]

    def eval_curves(self, arm: str, start: str = "") -> list[list[Point]]:
        """pass@1 before, during and after training, for each seed. The value before training belongs to arm `start`.

        All values use only the problems of the evaluations during training. The final evaluation can have more
        problems.
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
        """For each seed, the mean of pass@1 over training, from the evaluation of `start` to the last evaluation."""
        areas = []
        for curve in self.eval_curves(arm, start):
            points = [(point.steps, point.value) for point in curve]
            parts = [(right - left) * (a + b) / 2 for (left, a), (right, b) in pairwise(points)]
            areas.append(sum(parts) / points[-1][0])
        return areas


def _mean_over_seeds(rows: Sequence[Mapping[str, float]]) -> Estimate:
    """The mean of values over seeds and problems, with a confidence interval over problems.

    Each row has the values of one seed.
    """
    problems = sorted(set.intersection(*map(set, rows)))
    return bootstrap([fmean(row[problem] for row in rows) for problem in problems], Key(0, "claim"))


def _accuracy_by_problem(records: Sequence[Json]) -> dict[str, float]:
    """For each problem, the share of correct answers among the answers that could be graded."""
    graded = [(r["problem"], [reward for reward in r["rewards"] if reward is not None]) for r in records]
    return {problem: fmean(reward >= 1.0 for reward in rewards) for problem, rewards in graded if rewards}


def _problems_in_training(outcome: Outcome) -> int:
    """The number of problems in the evaluations during training; 0 without such evaluations."""
    return next((line["eval"]["problems"] for line in outcome.metrics if "eval" in line), 0)


def _accuracy(outcome: Outcome, problems: int) -> float:
    """pass@1 after training, on the first `problems` problems of the evaluation. 0 means all problems."""
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
    """A statement of a paper, and the test of this statement.

    arms      a function of (scale, seed) that returns the arms by name, in the order of the page. The arm `start` is
              the model from which other arms begin.
    budget    a text about what is equal in all arms. `budget_by_scale` has the text for scales other than tiny.
    premise   a condition of the test. The verdict is INVALID if the premise does not hold.
    rule      a text that says when the verdict is PASS. The function `check` tests the rule.
    draw      a function of (results, picture) that draws the figure.
    failures  lines of the page that explain failed checks. `failures_by_scale` has the lines for other scales.
    notes     lines of the page about pilots, earlier runs and limits. `notes_by_scale` has the lines for other scales.
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
    """Return INVALID if a premise does not hold, PASS if every other check passes, and FAIL otherwise.

    Checks of the kind `reported` are ignored. Raises SchoolError for a rule without a requirement, because such a rule
    cannot fail.
    """
    requirements = [check for check in checks if check.kind in ("must hold", "must fail")]
    if not requirements:
        raise SchoolError(
            "the rule of a claim has no requirement; add at least one check of kind `must hold` or `must fail`"
        )
    if not all(check.holds for check in checks if check.kind == "premise"):
        return "INVALID"
    return "PASS" if all(check.holds for check in requirements) else "FAIL"


def format_values(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Write the numbers of several seeds as one text, for example `0.812 0.790 0.833`."""
    return " ".join(f"{value:{'+' if sign else ''}.{digits}f}" for value in values)
