"""Rewards in addition to the reward of the task, for the format, the length and the KL of a completion.

Each function returns groups with new rewards. An ungraded rollout (reward None) stays ungraded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from schoolhouse.algorithms.advantages import std_dev
from schoolhouse.types import Group, Rollout, Verdict


def soft_overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's penalty for long completions (Yu et al. 2025, arXiv 2503.14476, eq. 13), to be added to the reward.

    The penalty is 0 up to `limit - buffer` tokens. Between `limit - buffer` and `limit` tokens, the penalty falls
    linearly from 0 to -1. For longer completions the penalty is -1.
    """
    return max(-1.0, min(0.0, (limit - buffer - length) / buffer))


def overlong_penalty(groups: Sequence[Group], limit: int, buffer: int) -> list[Group]:
    """Add half of the penalty `soft_overlong_penalty` to the rewards of the groups, as the part "overlong" of each
    verdict.

    The penalty is halved because the paper uses the rewards 1 and -1, but this package uses 1 and 0. With buffer 0 the
    rewards do not change.
    """
    if not buffer:
        return list(groups)
    shaped = []
    for group in groups:
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        shaped.append(replace(group, verdicts=tuple(_with_penalty(r, v, limit, buffer) for r, v in pairs)))
    return shaped


def _with_penalty(rollout: Rollout, verdict: Verdict, limit: int, buffer: int) -> Verdict:
    penalty = soft_overlong_penalty(sum(rollout.loss_mask), limit, buffer) / 2
    reward = None if verdict.reward is None else verdict.reward + penalty
    return replace(verdict, reward=reward, parts={**verdict.parts, "overlong": penalty})


def add_format_rewards(
    groups: Sequence[Group],
    format_rewards: Callable[[Rollout], Mapping[str, float]],
    weights: Mapping[str, float],
    std_eps: float = 0.0,
    ddof: Literal[0, 1] = 1,
) -> list[Group]:
    """Add format rewards to the rewards of the groups: reward + sum of weight x format reward.

    The format rewards are DeepSeek-R1's rewards for format and for language consistency (Guo et al. 2025, arXiv
    2501.12948). Each format reward becomes a part of the verdict, without its weight.

    If `std_eps` is above 0, each reward is first normalised within its group: the mean is subtracted, and the result is
    divided by the standard deviation + `std_eps`. Without normalisation, different combinations of rewards can have the
    same sum (GDPO, arXiv 2601.05242).
    """
    if not weights:
        return list(groups)
    shaped = []
    for group in groups:
        parts = [format_rewards(rollout) for rollout in group.rollouts]
        graded = [verdict.reward is not None for verdict in group.verdicts]
        rewards = {name: [row[name] for row in parts] for name in weights}
        rewards["task"] = [verdict.reward or 0.0 for verdict in group.verdicts]
        if std_eps:
            rewards = {name: _standardised(row, graded, std_eps, ddof) for name, row in rewards.items()}
        sums = [
            reward + sum(weight * rewards[name][at] for name, weight in weights.items())
            for at, reward in enumerate(rewards["task"])
        ]
        verdicts = [
            replace(verdict, reward=total if is_graded else None, parts={**verdict.parts, **row})
            for verdict, total, is_graded, row in zip(group.verdicts, sums, graded, parts, strict=True)
        ]
        shaped.append(replace(group, verdicts=tuple(verdicts)))
    return shaped


def _standardised(rewards: Sequence[float], graded: Sequence[bool], std_eps: float, ddof: int) -> list[float]:
    """Normalise rewards by the mean and the standard deviation + `std_eps` of the graded rollouts.

    If all graded rollouts have the same reward, every result is exactly 0.
    """
    known = [reward for reward, is_graded in zip(rewards, graded, strict=True) if is_graded]
    if len({*known}) < 2:
        return [0.0] * len(rewards)
    mean, std = fmean(known), std_dev(known, ddof)
    return [(reward - mean) / (std + std_eps) for reward in rewards]


def length_reward(groups: Sequence[Group], coefficient: float) -> list[Group]:
    """Add a reward for shorter answers to the same problem (Kimi k1.5, arXiv 2501.12599, section 2.3.3).

    The function adds `coefficient` x lambda to the reward, where lambda = 0.5 - (length - shortest) / (longest -
    shortest) within the group. If the reward of an answer is below 1, a positive lambda is replaced by 0, so that a
    short wrong answer gets no extra reward. If all answers of a group are right, their rewards differ only by the
    lambda term.
    """
    return [_with_length_reward(group, coefficient) for group in groups] if coefficient else list(groups)


def _with_length_reward(group: Group, coefficient: float) -> Group:
    lengths = [sum(rollout.loss_mask) for rollout in group.rollouts]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return group
    verdicts = []
    for verdict, length in zip(group.verdicts, lengths, strict=True):
        preference = 0.5 - (length - shortest) / (longest - shortest)
        if verdict.reward is not None:
            earned = preference if verdict.reward >= 1.0 else min(0.0, preference)
            verdict = replace(verdict, reward=verdict.reward + coefficient * earned)
        verdicts.append(verdict)
    return Group(group.problem, group.rollouts, tuple(verdicts))


def kl_in_reward(
    groups: Sequence[Group], policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], kl_coef: float
) -> list[Group]:
    """Subtract `kl_coef` x KL from each reward, as in RLOO and RLHF (Ahmadian et al. 2024, arXiv 2402.14740).

    The whole completion counts as one action. The KL of a completion is the sum of (log pi - log pi_ref) over the loss
    mask (estimator k1). The arguments `policy` and `reference` are rows [T] of log-probabilities in the order of
    `rollouts_of(groups)`. Each verdict gets a part "kl".
    """
    rows = iter(zip(policy, reference, strict=True))
    shaped = []
    for group in groups:
        verdicts = []
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            kl = sum(p - q for p, q, mask in zip(*next(rows), rollout.loss_mask, strict=True) if mask)
            reward = None if verdict.reward is None else verdict.reward - kl_coef * float(kl)
            verdicts.append(replace(verdict, reward=reward, parts={**verdict.parts, "kl": float(kl)}))
        shaped.append(replace(group, verdicts=tuple(verdicts)))
    return shaped
