"""Compute advantages from rewards. The input is groups of rollouts. The output is one row of numbers [T] per rollout.

An ungraded rollout (reward None) is not treated as a reward of 0. The baseline of a group ignores ungraded rollouts.
The advantage of an ungraded rollout is 0, and `groups.drop_ungraded` removes the rollout from the loss.

In the shapes of lists, P is the number of problems, G the number of rollouts per problem, and T the number of tokens of
a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from math import inf
from statistics import fmean
from typing import Literal

from schoolhouse.types import Group, Rollout

Baseline = Literal["mean", "leave_one_out", "batch_mean", "none"]
ScaleRewards = Literal["group_std", "group_mean", "batch_std", "none"]


def group_advantage(
    groups: Sequence[Group],
    baseline: Baseline = "mean",
    scale: ScaleRewards = "group_std",
    std_eps: float = 1e-4,
    ddof: Literal[0, 1] = 1,
    scope: Sequence[Group] | None = None,
) -> list[list[float]]:
    """Compute how much better each rollout is than its group.

    All tokens of a rollout in the loss mask get the same advantage; all other tokens get 0.

    Baseline `mean` with scale `group_std` is GRPO and DAPO. The advantage is (r - mean) / (std + std_eps).
    Baseline `mean` with scale `none` is Dr. GRPO.
    Baseline `mean` with scale `batch_std` is Lite-PPO and ScaleRL, which divide by the std of all rewards of the step.
    Baseline `leave_one_out` with scale `none` is RLOO. The advantage is r minus the mean of the *other* rollouts, which
    is equal to G/(G-1) (r - mean).
    Baseline `batch_mean` with scale `batch_std` is REINFORCE++, which uses the mean and std of all rewards of the step.
    Baseline `none` with scale `none` is REINFORCE. The advantage is the reward r.
    Baseline `mean` with scale `group_mean` is MaxRL (Tajwar et al. 2026, arXiv 2602.02710), for rewards of 0 and 1. The
    advantage is (r - mean) / mean, so problems that are rarely solved have more weight. If the mean is not above 0, all
    advantages of the group are 0.

    `ddof=1` gives the standard deviation of a sample (as in all published code). `ddof=0` gives the standard deviation
    of a population. If `groups` contains only some groups of a training step, `scope` must contain all groups of this
    step. The rows are in the order of `rollouts_of(groups)`. With a group baseline, the advantage is exactly 0.0 if all
    rewards of a group are equal, or if the group has only one rollout.

    Raises ValueError if `scale` does not fit `baseline`, because the advantages of a group with equal rewards would
    then be divided by `std_eps` alone.
    """
    needs_group = scale in ("group_std", "group_mean")
    if (baseline == "none" and scale != "none") or (baseline == "batch_mean" and needs_group):
        raise ValueError(f'baseline "{baseline}" cannot be combined with scale "{scale}"; choose another scale')
    all_rewards = [reward for group in scope or groups for reward in group.rewards]
    batch_mean = fmean(all_rewards) if all_rewards else 0.0
    batch_divisor = std_dev(all_rewards, ddof) + std_eps if scale == "batch_std" else 1.0
    rows = []
    for group in groups:
        rewards = group.rewards
        divisor = std_dev(rewards, ddof) + std_eps if scale == "group_std" else batch_divisor
        constant = len(set(rewards)) <= 1
        mean = fmean(rewards) if rewards else 0.0
        if scale == "group_mean":
            divisor = mean if mean > 0.0 else inf
        others = len(rewards) / (len(rewards) - 1) if baseline == "leave_one_out" and not constant else 1.0
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if verdict.reward is None:
                advantage = 0.0
            elif baseline == "none":
                advantage = verdict.reward
            elif baseline == "batch_mean":
                advantage = (verdict.reward - batch_mean) / divisor
            else:
                advantage = 0.0 if constant else others * (verdict.reward - mean) / divisor
            rows.append([advantage if mask else 0.0 for mask in rollout.loss_mask])
    return rows


def subtract_to_go(
    groups: Sequence[Group],
    costs: Sequence[Sequence[float]],
    baseline: Baseline = "none",
    scale: ScaleRewards = "none",
    std_eps: float = 1e-4,
    ddof: Literal[0, 1] = 1,
) -> list[list[float]]:
    """Compute advantages from rewards of rollouts and costs of tokens, such as a KL penalty.

    The cost of a token and the costs of all later tokens in the loss mask are subtracted from the token's reward. The
    costs of earlier tokens are not subtracted, because a token cannot change earlier tokens. The advantage of token t
    is r - baseline - (sum of the costs from t to the end).

    Baseline `batch_mean` with scale `batch_std` is REINFORCE++ (Hu et al. 2025, arXiv 2501.03262). The mean and the
    standard deviation are those of all tokens of the step, not of all rollouts. The other baselines are those of
    `group_advantage`. `costs` has one row [T] per rollout, in the order of `rollouts_of(groups)`. Tokens outside the
    loss mask and tokens of ungraded rollouts get 0.

    Raises ValueError for the scales `group_std` and `group_mean`, because costs of tokens have no standard deviation
    within a group.
    """
    if scale in ("group_std", "group_mean"):
        raise ValueError(f'scale "{scale}" cannot be combined with costs of tokens; choose "batch_std" or "none"')
    if baseline == "none" and scale != "none":
        raise ValueError(f'baseline "none" cannot be combined with scale "{scale}"; choose another scale')
    rewards = group_advantage(groups, "none" if baseline == "batch_mean" else baseline, "none")
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows, known = [], []
    for rollout, verdict, reward, cost in zip(rollouts, verdicts, rewards, costs, strict=True):
        row, to_go = [0.0] * len(rollout), 0.0
        for t in reversed(range(len(rollout))):
            if rollout.loss_mask[t] and verdict.reward is not None:
                to_go += float(cost[t])
                row[t] = reward[t] - to_go
        rows.append(row)
        known += compress(row, rollout.loss_mask) if verdict.reward is not None else ()
    mean = fmean(known) if known and baseline == "batch_mean" else 0.0
    divisor = std_dev(known, ddof) + std_eps if scale == "batch_std" else 1.0
    return [
        [
            (value - mean) / divisor if mask and verdict.reward is not None else 0.0
            for value, mask in zip(row, rollout.loss_mask, strict=True)
        ]
        for row, rollout, verdict in zip(rows, rollouts, verdicts, strict=True)
    ]


def step_advantage(
    rollouts: Sequence[Rollout], ends: Sequence[Sequence[int]], step_values: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Give each token in the loss mask the value of its step.

    Tokens after the last step and tokens outside the loss mask get 0.

    `ends` has, for each rollout, the end index (exclusive) of each step.
    `step_values` has, for each rollout, the value of each step.
    """
    rows = []
    for rollout, places, values in zip(rollouts, ends, step_values, strict=True):
        row, start = [0.0] * len(rollout), 0
        for end, value in zip(places, values, strict=True):
            row[start:end] = [value if mask else 0.0 for mask in rollout.loss_mask[start:end]]
            start = end
        rows.append(row)
    return rows


def distillation_advantage(rollouts: Sequence[Rollout], teacher: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the advantage log pi_teacher - log pi of each token in the loss mask. Tokens outside the loss mask get 0.

    The log-probabilities log pi come from the sampler. With the REINFORCE loss, the mean gradient is the gradient of
    KL(pi || teacher) at each token (Agarwal et al. 2023, arXiv 2306.13649). `teacher` has one row [T] of
    log-probabilities per rollout.
    """
    return [
        [float(q) - p if mask else 0.0 for p, q, mask in zip(rollout.logprob, row, rollout.loss_mask, strict=True)]
        for rollout, row in zip(rollouts, teacher, strict=True)
    ]


def masked_mean(rollouts: Sequence[Rollout], rows: Sequence[Sequence[float]]) -> float:
    """The mean of the values in the loss masks of the rollouts. Returns 0 if no token is in a loss mask."""
    values = [value for rollout, row in zip(rollouts, rows, strict=True) for value in compress(row, rollout.loss_mask)]
    return fmean(values) if values else 0.0


def value_gains(values: Sequence[float], start: float) -> list[float]:
    """Compute how much each step changed the value of the state: v_i - v_{i-1}.

    The argument `start` is the value before the first step. If the values belong to a policy, v_i - v_{i-1} is the
    advantage of step i under this policy (Setlur et al. 2024, arXiv 2410.08146).
    """
    return [value - before for before, value in zip([start, *values], values, strict=False)]


def uses_group_baseline(baseline: Baseline) -> bool:
    """Return True if each rollout is compared only with its own group.

    With a group baseline, a group with equal rewards gives no gradient.
    """
    return baseline in ("mean", "leave_one_out")


def scale_negatives(rows: Sequence[Sequence[float]], scale: float) -> list[list[float]]:
    """Multiply the negative advantages by `scale`. With scale 0 the policy learns only from successes."""
    return [[advantage if advantage > 0 else scale * advantage for advantage in row] for row in rows]


def std_dev(scores: Sequence[float], ddof: int) -> float:
    """The standard deviation of the scores. Returns 0 if there are fewer than two scores."""
    if len(scores) < 2:
        return 0.0
    mean = fmean(scores)
    return (sum((score - mean) ** 2 for score in scores) / (len(scores) - ddof)) ** 0.5
