"""From verdicts to credit: who is praised for what. Groups in, one row of numbers [T] per rollout out.

Plain arithmetic on plain data. A rollout that could not be judged (score None) is never a zero in disguise: it is left
out of its group's baseline, gets no credit, and `judged` takes it out of the loss.

P problems, G rollouts of a problem, T tokens of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from schoolhouse.types import Group, Reply, Rollout, Verdict

Baseline = Literal["mean", "leave_one_out", "batch_mean", "none"]
Scale = Literal["group_std", "batch_std", "none"]


# --- choosing and counting


def rollouts_of(groups: Iterable[Group]) -> list[Rollout]:
    """All rollouts, group after group: the order in which every credit returns its rows. [P*G]"""
    return [rollout for group in groups for rollout in group.rollouts]


def mixed(groups: Iterable[Group]) -> list[Group]:
    """The groups that disagree. Where all scores are equal, comparing siblings teaches nothing."""
    return [group for group in groups if len(set(group.scores)) > 1]


def judged(groups: Iterable[Group]) -> list[Group]:
    """The groups without the rollouts that could not be judged; groups of which none is left are dropped.

    Changes no baseline (those never counted), but takes the rollouts out of the loss and its denominators.
    """
    return [
        Group(
            group.problem,
            tuple(r for r, v in zip(group.rollouts, group.verdicts, strict=True) if v.score is not None),
            tuple(v for v in group.verdicts if v.score is not None),
        )
        for group in groups
        if group.scores
    ]


def not_judged(groups: Iterable[Group]) -> list[Rollout]:
    """Rollouts whose verifier could not say (score None)."""
    return [
        rollout
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.score is None
    ]


def with_scores(groups: Sequence[Group], scores: Sequence[float | None]) -> list[Group]:
    """The groups with other scores, one for each rollout in the order of `rollouts_of`; None: not judged."""
    given = iter(scores)
    return [
        replace(
            group,
            verdicts=tuple(
                replace(verdict, score=next(given), reason=verdict.reason or "no score") for verdict in group.verdicts
            ),
        )
        for group in groups
    ]


def truncated(groups: Iterable[Group]) -> list[Rollout]:
    """Rollouts that were cut off. To mask them: pack(..., weigh=without(weigh, truncated(groups)))."""
    return [rollout for rollout in rollouts_of(groups) if rollout.finish == "length"]


def signal_account(
    groups: Sequence[Group], replies: Sequence[Reply] | None = None
) -> dict[str, float | dict[str, float]]:
    """Where the signal of a step is, and where there is none, why.

    groups = groups_mixed + all_truncated (nobody came to an end, all scored alike) + all_right (every score 1)
    + all_wrong (every score 0) + other_equal (equal, but neither) + groups_not_judged (no score at all).
    `not_judged`, `truncated` and `no_answer` (an empty final answer; where replies are given) count rollouts, out of
    `rollouts`; `sampled_tokens` are those the policy wrote. `reward` is the mean score of what could be judged (nan
    where nothing could), `reward_parts` that of its named parts.
    """
    kinds = [_kind(group) for group in groups]
    scores = [score for group in groups for score in group.scores]
    rollouts = rollouts_of(groups)
    answers = {} if replies is None else {"no_answer": sum(not reply.answer.strip() for reply in replies)}
    parts = mean_parts(groups)
    return {
        "groups": len(groups),
        **{kind: kinds.count(kind) for kind in _KINDS},
        "rollouts": len(rollouts),
        "not_judged": len(not_judged(groups)),
        "truncated": len(truncated(groups)),
        **answers,
        "sampled_tokens": sampled_tokens(rollouts),
        "reward": fmean(scores) if scores else float("nan"),
        **({"reward_parts": parts} if parts else {}),
    }


def sampled_tokens(rollouts: Iterable[Rollout]) -> int:
    """How many tokens the policy wrote."""
    return sum(sum(rollout.written) for rollout in rollouts)


def mean_parts(groups: Sequence[Group], names: Collection[str] | None = None) -> dict[str, float]:
    """Mean of each named part of the scores (of `names` only, if given), over the verdicts that have it."""
    given: dict[str, list[float]] = {}
    for group in groups:
        for verdict in group.verdicts:
            for name, value in verdict.parts.items():
                if names is not None and name not in names:
                    continue
                given.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in sorted(given.items())}


_KINDS = ("groups_mixed", "all_truncated", "all_right", "all_wrong", "other_equal", "groups_not_judged")


def _kind(group: Group) -> str:
    distinct = set(group.scores)
    if not distinct:
        return "groups_not_judged"
    if len(distinct) > 1:
        return "groups_mixed"
    if all(rollout.finish == "length" for rollout in group.rollouts):
        return "all_truncated"
    return {1.0: "all_right", 0.0: "all_wrong"}.get(distinct.pop(), "other_equal")


# --- rewards beside the verdict


def soft_overlong(length: int, limit: int, cushion: int) -> float:
    """DAPO's penalty on length in tokens (Yu et al. 2025, arXiv 2503.14476, eq. 13): 0 up to `limit - cushion`, then
    falling linearly to -1 at `limit`, and -1 beyond. To be added to the score."""
    return max(-1.0, min(0.0, (limit - cushion - length) / cushion))


def against_overlong(groups: Sequence[Group], limit: int, cushion: int) -> list[Group]:
    """The groups with half of `soft_overlong` added to their scores, which gain the part "overlong"; cushion 0: as they
    are. Half, because the paper's scores are 1 and -1, ours 1 and 0."""
    if not cushion:
        return list(groups)
    tolled = []
    for group in groups:
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        tolled.append(replace(group, verdicts=tuple(_with_toll(r, v, limit, cushion) for r, v in pairs)))
    return tolled


def _with_toll(rollout: Rollout, verdict: Verdict, limit: int, cushion: int) -> Verdict:
    toll = soft_overlong(sum(rollout.written), limit, cushion) / 2
    score = None if verdict.score is None else verdict.score + toll
    return replace(verdict, score=score, parts={**verdict.parts, "overlong": toll})


def with_manners(
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
        told = [verdict.score is not None for verdict in group.verdicts]
        rewards = {name: [row[name] for row in found] for name in weights}
        rewards["right"] = [verdict.score or 0.0 for verdict in group.verdicts]
        if guard:
            rewards = {name: _standardised(row, told, guard, ddof) for name, row in rewards.items()}
        sums = [
            right + sum(weight * rewards[name][at] for name, weight in weights.items())
            for at, right in enumerate(rewards["right"])
        ]
        verdicts = [
            replace(verdict, score=total if known else None, parts={**verdict.parts, **row})
            for verdict, total, known, row in zip(group.verdicts, sums, told, found, strict=True)
        ]
        praised.append(replace(group, verdicts=tuple(verdicts)))
    return praised


def _standardised(rewards: Sequence[float], told: Sequence[bool], guard: float, ddof: int) -> list[float]:
    """Centred and divided by deviation + guard over those that are judged; exactly 0 where these agree."""
    known = [reward for reward, is_told in zip(rewards, told, strict=True) if is_told]
    if len({*known}) < 2:
        return [0.0] * len(rewards)
    mean, deviation = fmean(known), _deviation(known, ddof)
    return [(reward - mean) / (deviation + guard) for reward in rewards]


def prefer_brief(groups: Sequence[Group], coefficient: float) -> list[Group]:
    """The groups with a preference for the shorter of several answers to one problem added to their scores.

    Kimi k1.5 (arXiv 2501.12599, section 2.3.3): lambda = 0.5 - (length - shortest) / (longest - shortest) within the
    group, added whole to an answer with full marks, and only where negative to another, times `coefficient`. A wrong
    answer gains nothing by being short. Where all are right it is the only thing left to tell them apart.
    """
    return [_with_brevity(group, coefficient) for group in groups] if coefficient else list(groups)


def _with_brevity(group: Group, coefficient: float) -> Group:
    lengths = [sum(rollout.written) for rollout in group.rollouts]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return group
    verdicts = []
    for verdict, length in zip(group.verdicts, lengths, strict=True):
        preference = 0.5 - (length - shortest) / (longest - shortest)
        if verdict.score is not None:
            earned = preference if verdict.score >= 1.0 else min(0.0, preference)
            verdict = replace(verdict, score=verdict.score + coefficient * earned)
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
            kl = sum(p - q for p, q, w in zip(*next(rows), rollout.written, strict=True) if w)
            score = None if verdict.score is None else verdict.score - beta * float(kl)
            verdicts.append(replace(verdict, score=score, parts={**verdict.parts, "kl": float(kl)}))
        tolled.append(replace(group, verdicts=tuple(verdicts)))
    return tolled


# --- credit


def group_advantage(
    groups: Sequence[Group],
    baseline: Baseline = "mean",
    scale: Scale = "group_std",
    guard: float = 1e-4,
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
    everything = [score for group in scope or groups for score in group.scores]
    batch_mean = fmean(everything) if everything else 0.0
    batch_divisor = _deviation(everything, ddof) + guard if scale == "batch_std" else 1.0
    rows = []
    for group in groups:
        scores = group.scores
        divisor = _deviation(scores, ddof) + guard if scale == "group_std" else batch_divisor
        agreed = len(set(scores)) <= 1
        mean = fmean(scores) if scores else 0.0
        others = len(scores) / (len(scores) - 1) if baseline == "leave_one_out" and not agreed else 1.0
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if verdict.score is None:
                advantage = 0.0
            elif baseline == "none":
                advantage = verdict.score
            elif baseline == "batch_mean":
                advantage = (verdict.score - batch_mean) / divisor
            else:
                advantage = 0.0 if agreed else others * (verdict.score - mean) / divisor
            rows.append([advantage if written else 0.0 for written in rollout.written])
    return rows


def step_advantage(
    rollouts: Sequence[Rollout], ends: Sequence[Sequence[int]], worth: Sequence[Sequence[float]]
) -> list[list[float]]:
    """What each step is worth, at every token written in it; 0 behind the last step and where nobody wrote.

    ends   the index behind each step of a rollout
    worth  a number for each of them
    """
    rows = []
    for rollout, places, numbers in zip(rollouts, ends, worth, strict=True):
        row, start = [0.0] * len(rollout), 0
        for end, number in zip(places, numbers, strict=True):
            row[start:end] = [number if written else 0.0 for written in rollout.written[start:end]]
            start = end
        rows.append(row)
    return rows


def progress(values: Sequence[float], start: float) -> list[float]:
    """How much each step changed what the state is worth: v_i - v_{i-1}, the first one from `start`.

    The advantage of a step under the policy that the values are of (Setlur et al. 2024, arXiv 2410.08146).
    """
    return [value - before for before, value in zip([start, *values], values, strict=False)]


def compares(baseline: Baseline) -> bool:
    """Whether a rollout is compared with its siblings alone, so that a group that agrees teaches nothing."""
    return baseline in ("mean", "leave_one_out")


def weaken(rows: Sequence[Sequence[float]], negative: float) -> list[list[float]]:
    """Advantages, those below zero times `negative`: 0 learns from successes alone."""
    return [[advantage if advantage > 0 else negative * advantage for advantage in row] for row in rows]


def _deviation(scores: Sequence[float], ddof: int) -> float:
    """Standard deviation; 0 for fewer than two scores."""
    if len(scores) < 2:
        return 0.0
    mean = fmean(scores)
    return (sum((score - mean) ** 2 for score in scores) / (len(scores) - ddof)) ** 0.5
