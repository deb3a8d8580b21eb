"""Reward models for chains (chains of small sums), and measurements of how well they select answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.claims.harness.claim import Arm, Evaluation, Json, Step
from schoolhouse.claims.harness.models import chain_model
from schoolhouse.data.chat import Conversation
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.eval.reward_model_eval import auc, best_of_n, first_error_f1, vote_of_n
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS, LabelPlaces, RewardModel
from schoolhouse.reward_models.step_labels import label_by_continuations, label_by_rules
from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Group, Rollout

TASK, MAX_NEW_TOKENS = "school:chain?steps=6", 96
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STYLES, UPDATES = "systematic_error=100", 1600
"""All demonstrations of the generator make the same systematic errors, and the generator is fully trained. The
generator's accuracy is .36 for one answer and .40 for a majority vote, and nearly every problem has a correct answer
among 256. So a reward model can select answers that a vote does not find, and the seeds agree. A generator with less
training makes the same errors, but its seeds differ widely (docs/lab.md)."""

FEW_SOLUTIONS: Mapping[str, Any] = {"num_prompts": 1000, "sampling.temperature": 1.0, "continuations": 4}
"""The settings for labels from continuations, which are expensive. At a higher temperature, solutions contain errors
too early. After an early error, few continuations are correct, even if the step itself is correct."""


class AnswerSelection(Evaluation):
    """The accuracy of answers that a reward model selects. A second model, called `generator`, samples the answers.

    pass_at_1         the accuracy of all sampled answers.
    best_N            the accuracy of the answer with the highest value among N answers.
    vote_N            the accuracy of the most frequent answer among N answers.
    weighted_N        the accuracy of the answer with the largest total value among N answers.
    best_64_min, ...  `best_64` with another way to combine step rewards into one value.
    auc, f1           how well the reward model grades single steps.
    """

    label_places: LabelPlaces = "steps"
    delimiter: str = ""
    """A delimiter that replaces the delimiter of the task. A control arm uses this option."""

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        generator, task = judged_models["generator"], open_task(self.task, seed)
        conversation, problems = generator.conversation, task.eval_problems(self.problems)
        prompts = prompt_groups(conversation, problems, self.samples, seed=seed, purpose="picks")
        sampled = generator.extend(prompts, self.max_new_tokens, temperature=self.temperature)
        groups = grade_rollouts(sampled, task, conversation.parse_completion)
        rollouts = rollouts_of(groups)
        reward_model = RewardModel(policy, self.delimiter or task.delimiter, self.label_places)
        step_logprobs = reward_model.step_logprobs(rollouts)
        overall: Json = {"pass_at_1": fmean(correct for group in groups for correct in _correct(group))}
        for name, aggregate in STEP_AGGREGATIONS.items():
            values = [aggregate(logprobs) if logprobs else 0.0 for logprobs in step_logprobs]
            for n in COUNTS if name == "product" else (64,):
                suffix = "" if name == "product" else f"_{name}"
                overall[f"best_{n}{suffix}"] = _best_of_n(groups, values, n)
        values = [STEP_AGGREGATIONS["product"](logprobs) if logprobs else 0.0 for logprobs in step_logprobs]
        answers = [normalized_answer(conversation.parse_completion(rollout)) for rollout in rollouts]
        for n in COUNTS:
            overall[f"vote_{n}"] = _vote_of_n(groups, answers, n)
            overall[f"weighted_{n}"] = _vote_of_n(groups, answers, n, values)
        if self.label_places == "steps" and not self.delimiter:
            subset = [i for i, rollout in enumerate(rollouts) if rollout.key.sample < 8]
            overall |= _step_metrics(
                task, conversation, [rollouts[i] for i in subset], [step_logprobs[i] for i in subset]
            )
        return {"overall": overall}


class LabelAgreement(Evaluation):
    """The agreement of step labels from continuations with labels by the task's rules.

    A policy samples both the steps and the continuations.

    auc_N  the AUC with which the share of correct continuations (of N) separates correct from incorrect steps.
    any_N  how often the label "any of N continuations ends correctly" equals the label by the task's rules.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        task, conversation = open_task(self.task, seed), policy.conversation
        problems = task.eval_problems(self.problems)
        prompts = prompt_groups(conversation, problems, self.samples, seed=seed, purpose="agreement")
        sampled = policy.extend(prompts, self.max_new_tokens, temperature=self.temperature)
        rollouts = [rollout for rollout in sampled if rollout.finish_reason == "stop"]
        by_rules = label_by_rules(task, conversation, rollouts)
        overall: Json = {}
        num_steps = 0
        for n in self.counts:
            by_continuations, _ = label_by_continuations(policy, task, rollouts, n, self.max_new_tokens)
            pairs = [
                (label, share)
                for exact, estimated in zip(by_rules, by_continuations, strict=True)
                for label, share in zip(exact.labels[:-1], estimated.labels[:-1], strict=True)  # without the answer
                if share is not None and label  # 0 is neutral: filler words
            ]
            correct, incorrect = ([share for label, share in pairs if label == kind] for kind in (1, -1))
            overall[f"auc_{n}"] = auc(correct, incorrect)
            overall[f"any_{n}"] = fmean((share > 0) == (label == 1) for label, share in pairs)
            num_steps = len(pairs)
        return {"overall": {**overall, "steps": num_steps}}


def _correct(group: Group) -> list[bool]:
    return [(verdict.reward or 0.0) >= 1.0 for verdict in group.verdicts]


def _best_of_n(groups: Sequence[Group], values: Sequence[float], n: int) -> float:
    shares, start = [], 0
    for group in groups:
        correct = _correct(group)
        shares.append(best_of_n(correct, values[start : start + len(correct)], n))
        start += len(correct)
    return fmean(shares)


def _vote_of_n(
    groups: Sequence[Group], answers: Sequence[Any], n: int, weights: Sequence[float] | None = None
) -> float:
    shares, start = [], 0
    for group in groups:
        correct = _correct(group)
        members = slice(start, start + len(correct))
        shares.append(vote_of_n(answers[members], correct, n, weights[members] if weights else None))
        start += len(correct)
    return fmean(shares)


def _step_metrics(
    task: Task, conversation: Conversation, rollouts: Sequence[Rollout], step_logprobs: Sequence[Sequence[float]]
) -> Json:
    """Return the AUC of the steps up to the first error, and the F1 of finding the first error.

    The predicted first error is the first step with a reward below one half.
    """
    correct: list[float] = []
    incorrect: list[float] = []
    predicted: list[int | None] = []
    actual: list[int | None] = []
    for solution, logprobs in zip(label_by_rules(task, conversation, rollouts), step_logprobs, strict=True):
        labels = solution.truncate_at_first_error().labels
        for label, logprob in zip(labels, logprobs, strict=False):
            if label:
                (correct if label == 1 else incorrect).append(logprob)
        if labels:
            actual.append(labels.index(-1.0) if -1.0 in labels else None)
            predicted.append(next((i for i, logprob in enumerate(logprobs) if logprob < math.log(0.5)), None))
    return {"auc": auc(correct, incorrect), "f1": first_error_f1(predicted, actual)}


def generator(seed: int) -> Step:
    """A model that solves chains (chains of small sums) of up to six operations and writes out every step."""
    return chain_model(seed, steps=UPDATES, styles=STYLES, lengths="2-6")


def reward_model(seed: int, labels: str, **changes: Any) -> Step:
    """A reward model that starts from the generator and is trained on 16,000 of the generator's solutions.

    The solutions are sampled at a temperature above 1, so that rare errors occur too.
    """
    start = generator(seed)
    config: dict[str, Any] = {
        "model": start,
        "generator": start,
        "task": TASK,
        "sampling.max_new_tokens": MAX_NEW_TOKENS,
        "sampling.temperature": 1.3,
        "seed": seed,
        "labels": labels,
        "num_prompts": 4000,
        "samples_per_prompt": 4,
        "steps": 800,
    }
    return Step("prm", {**config, **changes})


def reward_model_arms(seed: int) -> Mapping[str, Arm]:
    """The arms that train reward models. Several claims share these arms.

    The training labels are labels of steps by the task's rules, labels of whole solutions, or labels of steps from
    continuations.
    """

    def arm(about: str, labels: str, places: LabelPlaces = "steps", **changes: Any) -> Arm:
        options = {"label_places": places} if places != "steps" else {}
        selection = AnswerSelection(task=TASK, problems=100, samples=256, max_new_tokens=MAX_NEW_TOKENS, **options)
        step = reward_model(seed, labels, **changes)
        return Arm(step, {"selection": selection}, about, {"generator": generator(seed)})

    return {
        "process": arm("the process reward model: steps labelled by the task's rules", "exact"),
        "outcome": arm(
            "the outcome reward model: whole solutions labelled by their answer", "outcome", "end", steps=1600
        ),
        "hard": arm("label of a step: whether any of 4 continuations ends correctly", "hard", **FEW_SOLUTIONS),
        "soft": arm("label of a step: the share of 4 continuations that end correctly", "soft", **FEW_SOLUTIONS),
        "shuffled": arm("labels shuffled between the steps", "exact", shuffle_labels=True),
    }
