"""Dividing each answer's loss by its own length lets wrong answers grow long: Dr. GRPO's first bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, told
from schoolhouse.claims.harness.figures import course, learning
from schoolhouse.claims.harness.models import chains, mixed_share, only_tiny, practice

EASY = Evaluation(task="school:chain?steps=3", problems=200, samples=8, max_new_tokens=128)
RATIO, APART, LAST = 1.2, 0.03, 10
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "own_length": ("loss over the answer's own length: GRPO", {"loss.aggregation": "sequence_mean"}),
    "budget": ("loss over the same number for all: Dr. GRPO", {"loss.aggregation": "constant"}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start = chains(seed, styles="filler=50,full=50")
    free = {"task": EASY.task, "sampling.max_new_tokens": EASY.max_new_tokens, "advantage.scale_rewards": "none", "steps": 30}
    return {
        "start": Arm(start, {"exam": EASY}, "half of its lessons ramble on and guess"),
        **{
            name: Arm(practice(start, seed, **free, **keys), {"exam": EASY}, about)
            for name, (about, keys) in ARMS.items()
        },
    }


def judge(results: Results) -> Sequence[Check]:
    wrong = {name: [fmean(row[-LAST:]) for row in results.course(name, "completion_tokens_incorrect")] for name in ARMS}
    right = {name: [fmean(row[-LAST:]) for row in results.course(name, "completion_tokens_correct")] for name in ARMS}
    ratios = [a / b for a, b in zip(wrong["own_length"], wrong["budget"], strict=True)]
    apart = results.gains("budget", "own_length")
    return [
        mixed_share(results, "budget"),
        Check(
            "premise",
            f"pass@1 within {APART} of each other, mean of seeds",
            told(apart, sign=True),
            abs(fmean(apart)) <= APART,
        ),
        Check(
            "must hold",
            f"tokens of wrong answers in the last {LAST} steps: {RATIO} times as many under own_length, each seed",
            f"{told(wrong['own_length'], 1)} against {told(wrong['budget'], 1)}: {told(ratios, 2)}",
            min(ratios) >= RATIO,
        ),
        Check(
            "reported",
            "tokens of right answers",
            f"{told(right['own_length'], 1)} against {told(right['budget'], 1)}",
            True,
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    one, two, three = picture.subplots(1, 3)
    course(one, results, [*ARMS], "completion_tokens_incorrect", "tokens of wrong answers")
    course(two, results, [*ARMS], "completion_tokens_correct", "tokens of right answers")
    learning(three, results, [*ARMS])


CLAIM = Claim(
    id="length_bias",
    paper="Liu et al. 2025, arXiv 2503.20783, section 3.1",
    sentence="Under 1/length a long wrong answer is blamed less for each of its tokens, so wrong answers grow",
    budget="30 steps of 32 problems x 16 rollouts of at most 128 tokens in both arms",
    premise="groups are mixed, and accuracy is the same",
    rule="in every seed wrong answers are 1.2 times as long under 1/length as under a constant",
    arms=arms,
    judge=judge,
    draw=draw,
)
