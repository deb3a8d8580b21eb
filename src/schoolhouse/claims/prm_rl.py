"""Rewards for progress need fewer samples than rewards for the answer alone; sums of step rewards are hacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_metric
from schoolhouse.claims.harness.models import chain_model, require_tiny, signal_check

CHAINS_OF_6 = Evaluation(task="school:chain?steps=6&lines=1", problems=200, samples=8, max_new_tokens=96)
STYLES = "systematic_error=70,filler=30"
"""A start with systematic errors, which a reward model can detect, and filler words, which a sum of step rewards may
reward."""
REWARD_MODEL: Mapping[str, Any] = {
    "num_prompts": 1000,
    "samples_per_prompt": 4,
    "sampling.temperature": 1.3,
    "steps": 500,
}
STEPS, WINDOW = 45, 5
MAX_TOKEN_RATIO, MIN_STEP_RATIO = 0.9, 1.3
ARMS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "outcome": ("the reward of the answer alone", "strict", {"alpha": 0.0}),
    "progress": ("and the change of value by each step", "strict", {"reward_form": "progress"}),
    "raw": ("and the sum of step rewards, which count filler words as correct", "exact", {"reward_form": "raw"}),
}
"""What is rewarded, the labels of the reward model, and the config."""


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start = chain_model(seed, 1500, styles=STYLES, lengths="2-6", lines=True)
    measures = {"eval": CHAINS_OF_6}
    common = {
        "model": start,
        "task": CHAINS_OF_6.task,
        "sampling.max_new_tokens": CHAINS_OF_6.max_new_tokens,
        "seed": seed,
    }
    reward_models = {
        labels: Step("prm", {**common, "generator": start, "labels": labels, **REWARD_MODEL})
        for labels in ("strict", "exact")
    }
    config = {**common, "steps": STEPS, "save_every": STEPS}
    return {
        "start": Arm(start, measures, "fine-tuned on demonstrations of chains"),
        "reward_model": Arm(reward_models["strict"], {}, "whose values progress is measured by"),
        **{
            name: Arm(Step("prm_rl", {**config, "reward_model": reward_models[labels], **changes}), measures, about)
            for name, (about, labels, changes) in ARMS.items()
        },
    }


def moving_average(values: Sequence[float]) -> list[float]:
    """Means over windows of WINDOW steps."""
    return [fmean(values[at : at + WINDOW]) for at in range(len(values) - WINDOW + 1)]


def tokens_until(results: Results, arm: str, goals: Sequence[float]) -> list[float]:
    """Tokens sampled until the reward first reaches a goal, for each seed; infinite where it never does."""
    tokens = []
    curves = zip(results.curves(arm, "reward"), results.curves(arm, "sampled_tokens"), goals, strict=True)
    for rewards, sampled_tokens, goal in curves:
        reached = next((at for at, value in enumerate(moving_average(rewards)) if value >= goal), None)
        tokens.append(inf if reached is None else sum(sampled_tokens[: reached + WINDOW]))
    return tokens


def check(results: Results) -> Sequence[Check]:
    goals = [moving_average(rewards)[-1] for rewards in results.curves("outcome", "reward")]
    outcome, progress = (tokens_until(results, arm, goals) for arm in ("outcome", "progress"))
    ratios = [a / b for a, b in zip(progress, outcome, strict=True)]
    extra = [results.arms["reward_model"][seed].sampled_tokens for seed in results.seeds]
    total_ratios = [(a + more) / b for a, b, more in zip(progress, outcome, extra, strict=True)]
    num_steps = {arm: [fmean(curve[-WINDOW:]) for curve in results.curves(arm, "num_steps")] for arm in ARMS}
    step_ratios = [a / b for a, b in zip(num_steps["raw"], num_steps["outcome"], strict=True)]
    gains = results.gains("outcome", "raw")
    step_rewards = [[fmean(curve[:WINDOW]), fmean(curve[-WINDOW:])] for curve in results.curves("raw", "step_reward")]
    return [
        signal_check(results, "outcome"),
        Check(
            "must hold",
            f"progress: the outcome arm's last reward with at most {MAX_TOKEN_RATIO} of its tokens, mean of seeds",
            format_values(ratios, 2),
            fmean(ratios) <= MAX_TOKEN_RATIO,
        ),
        Check(
            "must fail",
            f"raw: {MIN_STEP_RATIO} times as many steps in an answer at the end, and a lower pass@1, mean of seeds",
            f"{format_values(step_ratios, 2)}; {format_values(gains, sign=True)}",
            fmean(step_ratios) >= MIN_STEP_RATIO and fmean(gains) < 0,
        ),
        Check(
            "reported",
            "progress: the same, with the tokens of its reward model's training data",
            format_values(total_ratios, 2),
            True,
        ),
        Check(
            "reported",
            "raw: sum of step rewards, first to last",
            "; ".join(format_values(pair, 2) for pair in step_rewards),
            True,
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    plot_metric(left, results, [*ARMS], "reward", "accuracy in training")
    plot_metric(middle, results, [*ARMS], "num_steps", "steps in an answer")
    plot_metric(right, results, [*ARMS], "step_reward", "sum of step rewards")


CLAIM = Claim(
    id="prm_rl",
    paper="Setlur et al. 2024, arXiv 2410.08146",
    sentence="With a process reward model RL for progress needs fewer samples than RL for answers; sums of step "
    "rewards are hacked",
    budget=f"{STEPS} steps of 32 problems x 16 rollouts; the reward model's training data, 4,000 solutions with labels "
    "of their steps by the rules, are reported apart",
    premise="groups have mixed rewards",
    rule=f"progress reaches the outcome arm's last reward with {MAX_TOKEN_RATIO} of its tokens in the mean of seeds; "
    f"raw sums lead to {MIN_STEP_RATIO} times as many steps and to correct answers less often",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "Counted before with each step reward as the value of its state and with blanks between steps: FAIL in the "
        "second line alone (progress .86 .93 .83 of the tokens, 1.00 1.07 .99 with the reward model's; raw sums 1.01 "
        "1.00 1.00 times as many steps). A process reward model grades the step after an error as if nothing had "
        "happened (.95 after .02), so the product of the step rewards is now the value of a state. Filler words held "
        "no step that could be graded, because a word and the blank before it are one token. So steps are lines now, "
        "and the start has 1,500 updates instead of 900, after which it was correct .145 of the time.",
        "",
        "The reward model of progress has filler words labelled as incorrect (`labels: strict`): the probability of no "
        "error so far is then close to a value. The reward model of the raw sums has them labelled as correct, like "
        "PRM800K's neutral labels.",
        "",
        "Pilots with seed 0 fixed the reward models and the start. With values by continuations (2,000 solutions, 8 "
        "behind each step) progress was no faster than the outcome alone (.66 and .63 correct in the last five steps "
        "of training).",
    ),
)
