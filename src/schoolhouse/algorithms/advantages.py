"""Compute advantages from rewards. The input is groups; the output is one row of numbers [T] per rollout.

An ungraded rollout (reward None) does not count as a reward of 0. The baseline of its group ignores this rollout, the
advantage of the rollout is 0, and `groups.drop_ungraded` removes the rollout from the loss.

P problems, G rollouts of a problem, T tokens of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from schoolhouse.types import Group, Rollout

Baseline = Literal["mean", "leave_one_out", "batch_mean", "none"]
ScaleRewards = Literal["group_std", "batch_std", "none"]


def group_advantage(
    groups: Sequence[Group],
    baseline: Baseline = "mean",
    scale: ScaleRewards = "group_std",
    std_eps: float = 1e-4,
    ddof: Literal[0, 1] = 1,
    scope: Sequence[Group] | None = None,
) -> list[list[float]]:
    """How much better a rollout is than its group. All tokens of the loss mask get the same number, other tokens get 0.

    | baseline, scale | |
    |---|---|
    | mean, group_std | GRPO, DAPO: (r - mean) / (std + std_eps) |
    | mean, none | Dr. GRPO |
    | mean, batch_std | Lite-PPO, ScaleRL: std of all rewards of the step |
    | leave_one_out, none | RLOO: r - mean of the *other* rollouts = G/(G-1) (r - mean) |
    | batch_mean, batch_std | REINFORCE++: centred and scaled over all rewards of the step |
    | none, none | REINFORCE: r |

    ddof=1 is the standard deviation of a sample (as in all published code), ddof=0 that of a population. If `groups`
    are only a part of the step, `scope` must hold all groups of the step. The rows are in the order of
    `rollouts_of(groups)`. With a group baseline, the advantage is exactly 0.0 if all rewards of a group are equal, and
    in a group with one rollout.

    Raises ValueError if the scale does not fit the baseline: a constant group would be divided by std_eps.
    """
    if (baseline == "none" and scale != "none") or (baseline == "batch_mean" and scale == "group_std"):
        raise ValueError(f'baseline "{baseline}" does not go with scale "{scale}"')
    all_rewards = [reward for group in scope or groups for reward in group.rewards]
    batch_mean = fmean(all_rewards) if all_rewards else 0.0
    batch_divisor = std_dev(all_rewards, ddof) + std_eps if scale == "batch_std" else 1.0
    rows = []
    for group in groups:
        rewards = group.rewards
        divisor = std_dev(rewards, ddof) + std_eps if scale == "group_std" else batch_divisor
        constant = len(set(rewards)) <= 1
        mean = fmean(rewards) if rewards else 0.0
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


def step_advantage(
    rollouts: Sequence[Rollout], ends: Sequence[Sequence[int]], step_values: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Give every token of the loss mask the value of its step. Tokens after the last step or outside the mask get 0.

    ends         for each rollout, the end index of each step (exclusive)
    step_values  for each rollout, the value of each step
    """
    rows = []
    for rollout, places, values in zip(rollouts, ends, step_values, strict=True):
        row, start = [0.0] * len(rollout), 0
        for end, value in zip(places, values, strict=True):
            row[start:end] = [value if mask else 0.0 for mask in rollout.loss_mask[start:end]]
            start = end
        rows.append(row)
    return rows


def value_gains(values: Sequence[float], start: float) -> list[float]:
    """How much each step changed the value of the state: v_i - v_{i-1}. The value before the first step is `start`.

    If the values belong to a policy, this is the advantage of a step under that policy (Setlur et al. 2024, arXiv
    2410.08146).
    """
    return [value - before for before, value in zip([start, *values], values, strict=False)]


def uses_group_baseline(baseline: Baseline) -> bool:
    """Whether a rollout is compared only with its own group. A group of equal rewards then has no gradient."""
    return baseline in ("mean", "leave_one_out")


def scale_negatives(rows: Sequence[Sequence[float]], scale: float) -> list[list[float]]:
    """The advantages, with negative ones multiplied by `scale`. With 0 the policy learns only from successes."""
    return [[advantage if advantage > 0 else scale * advantage for advantage in row] for row in rows]


def std_dev(scores: Sequence[float], ddof: int) -> float:
    """Standard deviation; 0 for fewer than two scores."""
    if len(scores) < 2:
        return 0.0
    mean = fmean(scores)
    return (sum((score - mean) ** 2 for score in scores) / (len(scores) - ddof)) ** 0.5
