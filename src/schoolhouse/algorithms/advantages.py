"""From verdicts to credit: who is praised for what. Groups in, one row of numbers [T] per rollout out.

Plain arithmetic on plain data. A rollout that could not be judged (score None) is never a zero in disguise: it is left
out of its group's baseline, gets no credit, and `judged` takes it out of the loss.

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
    """How much better a rollout did than its siblings: the same number at each written token, 0 elsewhere.

    | baseline, scale | |
    |---|---|
    | mean, group_std | GRPO, DAPO: (r - mean) / (std + guard) |
    | mean, none | Dr. GRPO |
    | mean, batch_std | Lite-PPO, ScaleRL: std of all scores of the step |
    | leave_one_out, none | RLOO: r - mean of the *other* rollouts = G/(G-1) (r - mean) |
    | batch_mean, batch_std | REINFORCE++: centred and scaled over all scores of the step |
    | none, none | REINFORCE: r |

    ddof=1 is the sample deviation (as all published code), ddof=0 the population's. `scope` are all groups of the step
    where `groups` are only some. Rows in the order of `rollouts_of(groups)`. Where `compares` siblings, exactly 0.0 if
    all agree (and for a rollout without siblings).

    Raises ValueError for a scale that does not go with the baseline: a group that agrees would be divided by the guard.
    """
    if (baseline == "none" and scale != "none") or (baseline == "batch_mean" and scale == "group_std"):
        raise ValueError(f'baseline "{baseline}" does not go with scale "{scale}"')
    everything = [score for group in scope or groups for score in group.rewards]
    batch_mean = fmean(everything) if everything else 0.0
    batch_divisor = deviation(everything, ddof) + std_eps if scale == "batch_std" else 1.0
    rows = []
    for group in groups:
        scores = group.rewards
        divisor = deviation(scores, ddof) + std_eps if scale == "group_std" else batch_divisor
        agreed = len(set(scores)) <= 1
        mean = fmean(scores) if scores else 0.0
        others = len(scores) / (len(scores) - 1) if baseline == "leave_one_out" and not agreed else 1.0
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if verdict.reward is None:
                advantage = 0.0
            elif baseline == "none":
                advantage = verdict.reward
            elif baseline == "batch_mean":
                advantage = (verdict.reward - batch_mean) / divisor
            else:
                advantage = 0.0 if agreed else others * (verdict.reward - mean) / divisor
            rows.append([advantage if written else 0.0 for written in rollout.loss_mask])
    return rows


def step_advantage(
    rollouts: Sequence[Rollout], ends: Sequence[Sequence[int]], step_values: Sequence[Sequence[float]]
) -> list[list[float]]:
    """What each step is worth, at every token written in it; 0 behind the last step and where nobody wrote.

    ends   the index behind each step of a rollout
    worth  a number for each of them
    """
    rows = []
    for rollout, places, numbers in zip(rollouts, ends, step_values, strict=True):
        row, start = [0.0] * len(rollout), 0
        for end, number in zip(places, numbers, strict=True):
            row[start:end] = [number if written else 0.0 for written in rollout.loss_mask[start:end]]
            start = end
        rows.append(row)
    return rows


def value_gains(values: Sequence[float], start: float) -> list[float]:
    """How much each step changed what the state is worth: v_i - v_{i-1}, the first one from `start`.

    The advantage of a step under the policy that the values are of (Setlur et al. 2024, arXiv 2410.08146).
    """
    return [value - before for before, value in zip([start, *values], values, strict=False)]


def uses_group_baseline(baseline: Baseline) -> bool:
    """Whether a rollout is compared with its siblings alone, so that a group that agrees teaches nothing."""
    return baseline in ("mean", "leave_one_out")


def scale_negatives(rows: Sequence[Sequence[float]], negative: float) -> list[list[float]]:
    """Advantages, those below zero times `negative`: 0 learns from successes alone."""
    return [[advantage if advantage > 0 else negative * advantage for advantage in row] for row in rows]


def deviation(scores: Sequence[float], ddof: int) -> float:
    """Standard deviation; 0 for fewer than two scores."""
    if len(scores) < 2:
        return 0.0
    mean = fmean(scores)
    return (sum((score - mean) ** 2 for score in scores) / (len(scores) - ddof)) ** 0.5
