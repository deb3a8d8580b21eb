"""Rewards beside the task's own: format, length, KL. Groups in, groups with other rewards out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from schoolhouse.algorithms.advantages import deviation
from schoolhouse.types import Group, Rollout, Verdict


def soft_overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's penalty on length in tokens (Yu et al. 2025, arXiv 2503.14476, eq. 13): 0 up to `limit - cushion`, then
    falling linearly to -1 at `limit`, and -1 beyond. To be added to the score."""
    return max(-1.0, min(0.0, (limit - buffer - length) / buffer))


def overlong_penalty(groups: Sequence[Group], limit: int, buffer: int) -> list[Group]:
    """The groups with half of `soft_overlong` added to their scores, which gain the part "overlong"; cushion 0: as they
    are. Half, because the paper's scores are 1 and -1, ours 1 and 0."""
    if not buffer:
        return list(groups)
    tolled = []
    for group in groups:
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        tolled.append(replace(group, verdicts=tuple(_with_toll(r, v, limit, buffer) for r, v in pairs)))
    return tolled


def _with_toll(rollout: Rollout, verdict: Verdict, limit: int, cushion: int) -> Verdict:
    toll = soft_overlong_penalty(sum(rollout.loss_mask), limit, cushion) / 2
    score = None if verdict.reward is None else verdict.reward + toll
    return replace(verdict, reward=score, parts={**verdict.parts, "overlong": toll})


def add_format_rewards(
    groups: Sequence[Group],
    manners: Callable[[Rollout], Mapping[str, float]],
    weights: Mapping[str, float],
    guard: float = 0.0,
    ddof: Literal[0, 1] = 1,
) -> list[Group]:
    """The groups with rewards for how an answer is given added to their scores: score + sum of weight x manner.

    DeepSeek-R1's rewards for format and for language consistency (Guo et al. 2025, arXiv 2501.12948). Each manner
    becomes a part of the verdict, without its weight.

    guard  above 0: the score and each manner are first centred in their group and divided by their deviation there +
           guard, so that different mixtures do not come to one sum (GDPO, arXiv 2601.05242)
    """
    if not weights:
        return list(groups)
    praised = []
    for group in groups:
        found = [manners(rollout) for rollout in group.rollouts]
        told = [verdict.reward is not None for verdict in group.verdicts]
        rewards = {name: [row[name] for row in found] for name in weights}
        rewards["right"] = [verdict.reward or 0.0 for verdict in group.verdicts]
        if guard:
            rewards = {name: _standardised(row, told, guard, ddof) for name, row in rewards.items()}
        sums = [
            right + sum(weight * rewards[name][at] for name, weight in weights.items())
            for at, right in enumerate(rewards["right"])
        ]
        verdicts = [
            replace(verdict, reward=total if known else None, parts={**verdict.parts, **row})
            for verdict, total, known, row in zip(group.verdicts, sums, told, found, strict=True)
        ]
        praised.append(replace(group, verdicts=tuple(verdicts)))
    return praised


def _standardised(rewards: Sequence[float], told: Sequence[bool], guard: float, ddof: int) -> list[float]:
    """Centred and divided by deviation + guard over those that are judged; exactly 0 where these agree."""
    known = [reward for reward, is_told in zip(rewards, told, strict=True) if is_told]
    if len({*known}) < 2:
        return [0.0] * len(rewards)
    mean, std = fmean(known), deviation(known, ddof)
    return [(reward - mean) / (std + guard) for reward in rewards]


def length_reward(groups: Sequence[Group], coefficient: float) -> list[Group]:
    """The groups with a preference for the shorter of several answers to one problem added to their scores.

    Kimi k1.5 (arXiv 2501.12599, section 2.3.3): lambda = 0.5 - (length - shortest) / (longest - shortest) within the
    group, added whole to an answer with full marks, and only where negative to another, times `coefficient`. A wrong
    answer gains nothing by being short. Where all are right it is the only thing left to tell them apart.
    """
    return [_with_brevity(group, coefficient) for group in groups] if coefficient else list(groups)


def _with_brevity(group: Group, coefficient: float) -> Group:
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
    groups: Sequence[Group], now: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], beta: float
) -> list[Group]:
    """The groups with score - beta x sum over written tokens of (log pi - log pi_ref): the toll of RLOO and RLHF.

    Ahmadian et al. 2024, arXiv 2402.14740: the reply is one action, its KL estimated by k1. `now` and `reference` are
    rows [T] of log-probabilities in the order of `rollouts_of(groups)`. The parts of each verdict gain "kl".
    """
    rows = iter(zip(now, reference, strict=True))
    tolled = []
    for group in groups:
        verdicts = []
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            kl = sum(p - q for p, q, w in zip(*next(rows), rollout.loss_mask, strict=True) if w)
            score = None if verdict.reward is None else verdict.reward - beta * float(kl)
            verdicts.append(replace(verdict, reward=score, parts={**verdict.parts, "kl": float(kl)}))
        tolled.append(replace(group, verdicts=tuple(verdicts)))
    return tolled
