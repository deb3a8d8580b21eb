"""A process reward model selects better answers than an outcome reward model. Both kinds of reward models select better
answers than a majority vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import COUNTS, MAX_NEW_TOKENS, TASK, AnswerSelection
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.models import require_tiny

MIN_AUC, MIN_F1, MAX_CONTROL_GAIN = 0.9, 0.8, 0.05
LARGE_COUNTS = [n for n in COUNTS if n >= 8]


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    shared = chain_reward_models.reward_model_arms(seed)
    process = shared["process"]
    selection = AnswerSelection(task=TASK, problems=100, samples=256, max_new_tokens=MAX_NEW_TOKENS, delimiter="\n")
    return {
        **{name: shared[name] for name in ("process", "outcome", "shuffled")},
        "other_delimiter": Arm(
            process.step,
            {"selection": selection},
            "the process reward model, read at the delimiter of another task",
            process.judged_models,
        ),
    }


def check(results: Results) -> Sequence[Check]:
    def by_seed(arm: str, metric: str) -> list[float]:
        return results.by_seed(arm, metric, "selection")

    def mean(arm: str, metric: str) -> float:
        return fmean(by_seed(arm, metric))

    accuracy = by_seed("process", "pass_at_1")
    process, outcome = ([mean(arm, f"best_{n}") for n in LARGE_COUNTS] for arm in ("process", "outcome"))
    vote = [mean("process", f"vote_{n}") for n in LARGE_COUNTS]
    gaps = [a - b for a, b in zip(process, outcome, strict=True)]
    checks = [
        Check(
            "premise",
            "the generator's accuracy is between .1 and .6",
            format_values(accuracy),
            0.1 <= min(accuracy) <= max(accuracy) <= 0.6,
        ),
        Check(
            "must hold",
            f"best of N = {', '.join(map(str, LARGE_COUNTS))}: the process reward model is at least as accurate as "
            "the outcome reward model, in the mean of seeds",
            f"accuracy: process {format_values(process)}, outcome {format_values(outcome)}",
            min(gaps) >= 0,
        ),
        Check(
            "must hold",
            "for the same N, the outcome reward model is at least as accurate as a majority vote, in the mean of seeds",
            f"accuracy: outcome {format_values(outcome)}, majority {format_values(vote)}",
            all(a >= b for a, b in zip(outcome, vote, strict=True)),
        ),
        Check(
            "must hold",
            "the gap between the process and the outcome reward model does not shrink from the first N to the last N",
            f"difference in accuracy: {format_values(gaps)}",
            gaps[-1] >= gaps[0],
        ),
    ]
    step_metrics = {
        "auc": ("the AUC of correct over incorrect steps", MIN_AUC),
        "f1": ("the F1 of finding the first error", MIN_F1),
    }
    for metric, (about, minimum) in step_metrics.items():
        values = by_seed("process", metric)
        text = f"for the process reward model, {about} is above {minimum} in each seed"
        checks.append(Check("must hold", text, format_values(values), min(values) > minimum))
    for arm, about in (
        ("shuffled", "a reward model with shuffled labels"),
        ("other_delimiter", "a reward model with another delimiter"),
    ):
        gains = [a - b for a, b in zip(by_seed(arm, "best_64"), accuracy, strict=True)]
        text = f"best of 64 by {about} is at most {MAX_CONTROL_GAIN} above pass@1"
        checks.append(Check("must fail", text, format_values(gains, sign=True), max(gains) <= MAX_CONTROL_GAIN))
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for arm in ("process", "outcome", "shuffled", "other_delimiter"):
        if arm in results.arms:
            accuracies = [results.mean(arm, f"best_{n}", "selection") for n in COUNTS]
            left.plot(COUNTS, accuracies, "o-", label=f"best by {arm}")
    if "process" in results.arms:
        votes = [results.mean("process", f"vote_{n}", "selection") for n in COUNTS]
        left.plot(COUNTS, votes, "k--", label="majority")
        names = ("auc", "f1")
        right.bar(names, [results.mean("process", name, "selection") for name in names], color="0.8")
        for at, name in enumerate(names):
            values = results.by_seed("process", name, "selection")
            right.plot([at] * len(values), values, "k.")
    left.set(xscale="log", xlabel="N", ylabel="accuracy", ylim=(0, 1.02))
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.set(ylim=(0, 1.02), title="single steps, process reward model")


CLAIM = Claim(
    id="prm",
    paper="Lightman et al. 2023, arXiv 2305.20050",
    sentence="A process reward model selects correct answers more often than an outcome reward model, and both "
    "reward models select correct answers more often than a majority vote",
    budget="each reward model is trained on 16,000 labelled solutions for 800 updates (1,600 updates for the "
    "outcome reward model). The reward models select from 256 answers to each of 100 problems.",
    premise="the generator's accuracy is between .1 and .6",
    rule="for N = 8 or more, best-of-N with the process reward model is at least as accurate as best-of-N with "
    "the outcome reward model, in the mean of seeds. For the same N, best-of-N with the outcome reward model is "
    "at least as accurate as a majority vote. The accuracy gap between the two reward models does not shrink when "
    "N grows. In each seed, the process reward model separates correct from incorrect steps with an AUC above .9, "
    "and finds the first error with an F1 above .8. A reward model with shuffled labels does not select better "
    "answers than chance. With another delimiter (the text that ends a step), the process reward model does not "
    "select better answers than chance.",
    arms=arms,
    check=check,
    draw=draw,
    failures=(
        "When the delimiter (the text that ends a step) does not occur in an answer, the process reward model "
        "gives only one score, at the end of the answer. With only one score at the end of the answer, the "
        "accuracy of the best of 64 answers is .051 and .061 above pass@1 in two seeds, but the rule allows at "
        "most .05. With a score after every step, the accuracy of the best of 64 answers is .61 above pass@1.",
    ),
    notes=(
        "Two earlier official runs had the verdict FAIL. The first run had 8,000 solutions and a generator whose "
        "errors came from too little training. In the first run, the accuracy of the three generators (one for "
        "each seed) was between .11 and .59. In the first run, for N above 8, no reward model was better than "
        "the majority vote. The second run had the present generator and 800 updates for every reward model, and "
        "two checks failed. In the second run, the outcome reward model selected answers whose accuracy was .013 "
        "below the accuracy of a majority vote of 256 answers. The loss of the outcome reward model was still "
        "falling (from .49 to .43 in the last 200 updates), while the loss of the process reward model was "
        "stable at .01. A reward model learns more slowly from labels of whole solutions than from labels of "
        "steps, so the outcome reward model now has twice as many updates. In the second run, the process reward "
        "model also gave scores after `=`, in the middle of a step. With the scores after `=`, the difference "
        "between the accuracy of the best of 64 answers and pass@1 was +.005, +.068 and -.008 in seeds 0, 1 and "
        "2. After `=`, the reward model still knows whether the previous steps were correct.",
    ),
)
