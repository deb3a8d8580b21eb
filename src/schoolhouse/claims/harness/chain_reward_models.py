"""Judges of chains, trained on one generator's solutions, and what they are worth when they pick among its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.claims.harness.claim import Arm, Evaluation, Json, Step
from schoolhouse.claims.harness.models import chains
from schoolhouse.eval.reward_model_eval import auc, best_of_n, first_error_f1, vote_of_n
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS, LabelPlaces, RewardModel
from schoolhouse.reward_models.step_labels import label_by_continuations, label_by_rules
from schoolhouse.tasks.answer_match import normalized_answer
from schoolhouse.tasks.grading import grade as verdicts_of
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Group, Key, Rollout

TASK, LENGTH = "school:chain?steps=6", 96
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HANDS, UPDATES = "systematic_error=100", 1600
"""The generator was taught, to the end, by a hand that makes the same mistakes again and again: right .36 of the time,
.40 by majority, nearly always once among 256. So there is something to pick that a vote does not find, and seeds agree
(one that is half taught errs in the same way, but seeds differ as much as they can: docs/lab.md)."""

FEW: Mapping[str, Any] = {"num_prompts": 1000, "sampling.temperature": 1.0, "continuations": 4}
"""Of solutions labelled by continuations, which are dear. What a warm sampler says is lost too early to tell much."""


class Picks(Evaluation):
    """A judge picks among the answers of the generator (the model `beside`).

    `best_N` how often its best of N is right, `vote_N` and `weighted_N` the most frequent one and that of the largest
    worth; `auc` and `f1` of single steps; `best_64_product` and so on for every way to make one number of grades.
    """

    where: LabelPlaces = "steps"
    delimiter: str = ""
    """Another than the task's own: a control."""

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        generator, task = beside["generator"], open_task(self.task, seed)
        say, problems = generator.conversation, task.eval_problems(self.problems)
        keys = [(p, Key(seed, "picks", 0, i, g)) for i, p in enumerate(problems) for g in range(self.samples)]
        asked = [say.prompt_rollout(problem, key) for problem, key in keys]
        groups = verdicts_of(
            generator.extend(asked, self.max_new_tokens, temperature=self.temperature), task, say.parse_completion
        )
        said = rollouts_of(groups)
        delimiter = self.delimiter or task.delimiter
        grades = RewardModel(policy, delimiter, self.where).step_logprobs(said)
        overall: Json = {"pass_at_1": fmean((score or 0.0) >= 1.0 for group in groups for score in _scores(group))}
        for name, aggregate in STEP_AGGREGATIONS.items():
            worth = [aggregate(logs) if logs else 0.0 for logs in grades]
            for n in COUNTS if name == "product" else (64,):
                suffix = "" if name == "product" else f"_{name}"
                overall[f"best_{n}{suffix}"] = _best(groups, worth, n)
        worth = [STEP_AGGREGATIONS["product"](logs) if logs else 0.0 for logs in grades]
        ballots = [normalized_answer(say.parse_completion(rollout)) for rollout in said]
        for n in COUNTS:
            overall[f"vote_{n}"] = _votes(groups, ballots, n)
            overall[f"weighted_{n}"] = _votes(groups, ballots, n, worth)
        if self.where == "steps" and not self.delimiter:
            few = [i for i, rollout in enumerate(said) if rollout.key.sample < 8]
            overall |= _steps(task, say, [said[i] for i in few], [grades[i] for i in few])
        return {"overall": overall}


class Agreement(Evaluation):
    """What continuations of a policy say of its own steps, beside the task's rules.

    `auc_N` how often a right step has the larger share of N continuations that end right; `any_N` how often "any of N
    ends right" is what the rules say.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        task, say = open_task(self.task, seed), policy.conversation
        exam = task.eval_problems(self.problems)
        keys = [(p, Key(seed, "agreement", 0, i, g)) for i, p in enumerate(exam) for g in range(self.samples)]
        said = policy.extend([say.prompt_rollout(p, key) for p, key in keys], self.max_new_tokens, temperature=self.temperature)
        said = [rollout for rollout in said if rollout.finish_reason == "stop"]
        exact = label_by_rules(task, say, said)
        overall: Json = {}
        for n in self.counts:
            values, _ = label_by_continuations(policy, task, said, n, self.max_new_tokens)
            pairs = [
                (label, value)
                for one, other in zip(exact, values, strict=True)
                for label, value in zip(one.labels[:-1], other.labels[:-1], strict=True)  # without the answer
                if value is not None and label  # neither right nor wrong: idle words
            ]
            right, wrong = [v for label, v in pairs if label == 1], [v for label, v in pairs if label == -1]
            overall[f"auc_{n}"] = auc(right, wrong)
            overall[f"any_{n}"] = fmean((value > 0) == (label == 1) for label, value in pairs if value is not None)
        return {"overall": {**overall, "steps": len(pairs)}}


def _scores(group: Group) -> list[float | None]:
    return [verdict.reward for verdict in group.verdicts]


def _best(groups: Sequence[Group], worth: Sequence[float], n: int) -> float:
    shares, at = [], 0
    for group in groups:
        right = [(score or 0.0) >= 1.0 for score in _scores(group)]
        shares.append(best_of_n(right, worth[at : at + len(right)], n))
        at += len(right)
    return fmean(shares)


def _votes(groups: Sequence[Group], ballots: Sequence[Any], n: int, worth: Sequence[float] | None = None) -> float:
    shares, at = [], 0
    for group in groups:
        right = [(score or 0.0) >= 1.0 for score in _scores(group)]
        mine = slice(at, at + len(right))
        shares.append(vote_of_n(ballots[mine], right, n, worth[mine] if worth else None))
        at += len(right)
    return fmean(shares)


def _steps(task: Any, say: Any, said: Sequence[Rollout], grades: Sequence[Sequence[float]]) -> Json:
    """auc of steps up to the first wrong one, f1 of finding it with a mark less likely than not."""
    right: list[float] = []
    wrong: list[float] = []
    found: list[int | None] = []
    true: list[int | None] = []
    for graded, logs in zip(label_by_rules(task, say, said), grades, strict=True):
        labels = graded.truncate_at_first_error().labels
        for label, grade in zip(labels, logs, strict=False):
            if label:
                (right if label == 1 else wrong).append(grade)
        if labels:
            true.append(labels.index(-1.0) if -1.0 in labels else None)
            found.append(next((i for i, grade in enumerate(logs) if grade < math.log(0.5)), None))
    return {"auc": auc(right, wrong), "f1": first_error_f1(found, true)}


def generator(seed: int) -> Step:
    """A model that works chains of up to six operations in full."""
    return chains(seed, steps=UPDATES, styles=HANDS, lengths="2-6")


def verifier(seed: int, labels: str, **changes: Any) -> Step:
    """A judge made from the generator itself, of 16,000 of its solutions, sampled warm: rare mistakes are seen too."""
    made = generator(seed)
    config: dict[str, Any] = {
        "model": made,
        "generator": made,
        "task": TASK,
        "sampling.max_new_tokens": LENGTH,
        "seed": seed,
    }
    config |= {
        "labels": labels,
        "num_prompts": 4000,
        "samples_per_prompt": 4,
        "sampling.temperature": 1.3,
        "steps": 800,
    }
    return Step("prm", {**config, **changes})


def arms(seed: int) -> Mapping[str, Arm]:
    """The judges that claims share: of steps by the rules, of answers, and of what continuations say."""
    steps = {"picks": Picks(task=TASK, problems=100, samples=256, max_new_tokens=LENGTH)}
    whole = {"picks": Picks(task=TASK, problems=100, samples=256, max_new_tokens=LENGTH, where="end")}
    beside = {"generator": generator(seed)}
    return {
        "process": Arm(verifier(seed, "exact"), steps, "labels of steps by the task's rules", beside),
        "outcome": Arm(
            verifier(seed, "outcome", steps=1600), whole, "labels of whole solutions by their answer", beside
        ),
        "hard": Arm(verifier(seed, "hard", **FEW), steps, "does any of 4 continuations end right?", beside),
        "soft": Arm(verifier(seed, "soft", **FEW), steps, "what share of 4 continuations ends right", beside),
        "shuffled": Arm(verifier(seed, "exact", shuffle_labels=True), steps, "labels dealt to other steps", beside),
    }
