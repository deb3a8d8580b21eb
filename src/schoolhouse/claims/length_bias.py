"""The length bias of GRPO: wrong answers grow if the loss of each answer is divided by its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, format_values
from schoolhouse.claims.harness.figures import plot_accuracy, plot_metric
from schoolhouse.claims.harness.models import chain_model, grpo_step, require_tiny, signal_check

CHAINS_OF_3 = Evaluation(task="school:chain?steps=3", problems=200, samples=8, max_new_tokens=128)
MIN_RATIO, MAX_DIFFERENCE, LAST_STEPS = 1.2, 0.03, 10
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sequence_mean": (
        "the loss of an answer is divided by its own length (GRPO)",
        {"loss.aggregation": "sequence_mean"},
    ),
    "constant": (
        "the loss of every answer is divided by the same constant (Dr. GRPO)",
        {"loss.aggregation": "constant"},
    ),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start, measures = chain_model(seed, styles="filler=50,full=50"), {"eval": CHAINS_OF_3}
    common = {
        "task": CHAINS_OF_3.task,
        "sampling.max_new_tokens": CHAINS_OF_3.max_new_tokens,
        "advantage.scale_rewards": "none",
        "steps": 30,
    }
    return {
        "start": Arm(start, measures, "fine-tuned; half of its demonstrations are filler words and a guess"),
        **{
            name: Arm(grpo_step(start, seed, {**common, **changes}), measures, about)
            for name, (about, changes) in ARMS.items()
        },
    }


def check(results: Results) -> Sequence[Check]:
    incorrect, correct = (
        {arm: [fmean(curve[-LAST_STEPS:]) for curve in results.curves(arm, metric)] for arm in ARMS}
        for metric in ("completion_tokens_incorrect", "completion_tokens_correct")
    )
    ratios = [a / b for a, b in zip(incorrect["sequence_mean"], incorrect["constant"], strict=True)]
    difference = results.gains("constant", "sequence_mean")
    return [
        signal_check(results, "constant"),
        Check(
            "premise",
            f"pass@1 of both arms differs by at most {MAX_DIFFERENCE} in the mean of seeds",
            format_values(difference, sign=True),
            abs(fmean(difference)) <= MAX_DIFFERENCE,
        ),
        Check(
            "must hold",
            f"in the last {LAST_STEPS} steps, wrong answers have at least {MIN_RATIO} times as many tokens under "
            "`sequence_mean` as under `constant`, in each seed",
            f"tokens: sequence_mean {format_values(incorrect['sequence_mean'], 1)}, "
            f"constant {format_values(incorrect['constant'], 1)}, "
            f"ratio {format_values(ratios, 2)}",
            min(ratios) >= MIN_RATIO,
        ),
        Check(
            "reported",
            "tokens of correct answers in the last steps, with `sequence_mean` and with `constant`",
            f"tokens: sequence_mean {format_values(correct['sequence_mean'], 1)}, "
            f"constant {format_values(correct['constant'], 1)}",
            True,
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    plot_metric(left, results, [*ARMS], "completion_tokens_incorrect", "tokens of wrong answers")
    plot_metric(middle, results, [*ARMS], "completion_tokens_correct", "tokens of correct answers")
    plot_accuracy(right, results, [*ARMS])


CLAIM = Claim(
    id="length_bias",
    paper="Liu et al. 2025, arXiv 2503.20783, section 3.1",
    sentence="If the loss of an answer is divided by its length, each token of a wrong answer is penalized less "
    "in a long answer than in a short answer, so wrong answers get longer",
    budget="both arms have 30 steps of 32 problems x 16 rollouts of at most 128 tokens",
    premise="groups have mixed rewards (correct and wrong rollouts), and both arms have the same accuracy",
    rule="in every seed, wrong answers are at least 1.2 times as long when the loss is divided by the answer's "
    "length as when it is divided by a constant",
    arms=arms,
    check=check,
    draw=draw,
)
