"""RL learns more slowly without the group mean as a baseline, and more slowly from positive advantages alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.figures import plot_accuracy, plot_metric
from schoolhouse.claims.harness.models import CHAINS_OF_4, chain_model, grpo_step, require_tiny, signal_check

STEPS = 120
CONFIG: Mapping[str, Any] = {
    "rewards.format": 1.0,
    "prompts_per_step": 8,
    "group_size": 8,
    "steps": STEPS,
    "save_every": STEPS,
    "eval.every": 24,
}
"""The config rewards correct answers and the format, as in DeepSeek-R1-Zero. After a few steps, nearly all answers get
the format reward, so the format reward gives no signal. The config has few rollouts, as if rollouts were expensive."""
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "group_mean": ("advantage = reward - mean of the group", {}),
    "no_baseline": ("advantage = the reward itself", {"advantage.baseline": "none", "advantage.scale_rewards": "none"}),
    "positive_only": ("advantage = max(reward - mean, 0)", {"advantage.negative_scale": 0.0}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start, measures = chain_model(seed), {"eval": CHAINS_OF_4}
    trained = {
        name: Arm(grpo_step(start, seed, {**CONFIG, **changes}), measures, about)
        for name, (about, changes) in ARMS.items()
    }
    return {"start": Arm(start, measures, "fine-tuned on demonstrations of chains"), **trained}


def check(results: Results) -> Sequence[Check]:
    checks = [signal_check(results, "group_mean")]
    reference = results.areas("group_mean")
    for name in ("no_baseline", "positive_only"):
        areas = results.areas(name)
        smaller = all(area < other for area, other in zip(areas, reference, strict=True))
        difference = results.difference("group_mean", name)
        entropy = format_values(results.by_seed(name, "entropy"))
        checks += [
            Check(
                "must hold",
                f"mean of pass@1 over training: {name} is below group_mean in each seed",
                f"mean pass@1: {name} {format_values(areas)}, group_mean {format_values(reference)}",
                smaller,
            ),
            Check(
                "reported",
                f"pass@1 at the end: {name} minus group_mean, with its interval",
                f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
                True,
            ),
            Check(
                "reported",
                f"entropy in the evaluation: {name} compared with group_mean",
                f"entropy: {name} {entropy}, group_mean {format_values(results.by_seed('group_mean', 'entropy'))}",
                True,
            ),
        ]
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    plot_accuracy(left, results, [*ARMS])
    plot_metric(right, results, [*ARMS], "entropy", "entropy of trained tokens, nats")


CLAIM = Claim(
    id="baseline",
    paper="Williams 1992; RGRA, arXiv 2603.18756",
    sentence="RL learns more slowly without a baseline, and more slowly without negative advantages",
    budget=f"every arm has {STEPS} steps of 8 problems x 8 rollouts of at most 64 tokens",
    premise="at least 30 % of groups have mixed rewards (correct and wrong rollouts) in the first five steps",
    rule="in every seed, the mean of pass@1 over training (the area under its curve) is smaller without a "
    "baseline than with the group mean as baseline. The mean of pass@1 is also smaller if only advantages above "
    "zero are used.",
    arms=arms,
    check=check,
    draw=draw,
    failures=(
        "In one seed of three, the arm without a baseline learns as much as the arm with the group mean. In seed "
        "2, the mean of pass@1 over training is .887 without a baseline and .886 with the group mean. In seed 0, "
        "the mean of pass@1 over training is .802 without a baseline and .822 with a baseline. In seed 1, the "
        "mean of pass@1 over training is .669 without a baseline and .730 with a baseline. In seed 2, sixty steps "
        "are enough for the model to learn the task. A pilot with 16 rollouts per step shows no effect of the "
        "baseline either: the mean of four evaluations is .97 pass@1 with a baseline and .98 without a baseline. "
        "If training uses Adam and the policy is sure of most of its tokens, there is little noise that a "
        "baseline can remove. Without negative advantages, the model learns more slowly in every seed.",
    ),
    notes=(
        "In a first official run, the reward was 1 for a correct answer and 0 for any other answer, and each step "
        "had 32 problems x 16 rollouts. The verdict of the first official run was FAIL: in every seed, the arm "
        "without a baseline learned as much as the arm with the group mean (docs/lab.md).",
    ),
)
