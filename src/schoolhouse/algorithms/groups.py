"""Choose and count rollouts of graded groups: which groups give a training signal, and why other groups give none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from schoolhouse.types import Completion, Group, Rollout


def rollouts_of(groups: Iterable[Group]) -> list[Rollout]:
    """All rollouts, group after group. The rows of advantages have the same order. [P*G]"""
    return [rollout for group in groups for rollout in group.rollouts]


def drop_constant_reward_groups(groups: Iterable[Group]) -> list[Group]:
    """The groups whose rewards differ. In a group of equal rewards every advantage is zero."""
    return [group for group in groups if len(set(group.rewards)) > 1]


def drop_ungraded(groups: Iterable[Group]) -> list[Group]:
    """The groups without their ungraded rollouts. A group without any graded rollout is dropped.

    This changes no baseline, because ungraded rollouts never count there. But this removes the ungraded rollouts from
    the loss and from its denominators.
    """
    return [
        Group(
            group.problem,
            tuple(r for r, v in zip(group.rollouts, group.verdicts, strict=True) if v.reward is not None),
            tuple(v for v in group.verdicts if v.reward is not None),
        )
        for group in groups
        if group.rewards
    ]


def ungraded(groups: Iterable[Group]) -> list[Rollout]:
    """Rollouts whose verifier gave no reward (None)."""
    return [
        rollout
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.reward is None
    ]


def with_rewards(groups: Sequence[Group], rewards: Sequence[float | None]) -> list[Group]:
    """The groups with new rewards, one for each rollout in the order of `rollouts_of`. None means ungraded."""
    new = iter(rewards)
    return [
        replace(
            group,
            verdicts=tuple(
                replace(verdict, reward=next(new), reason=verdict.reason or "no reward") for verdict in group.verdicts
            ),
        )
        for group in groups
    ]


def truncated(groups: Iterable[Group]) -> list[Rollout]:
    """Truncated rollouts. To leave them out of the loss: pack(rollouts, without(token_weight, truncated(groups)))."""
    return [rollout for rollout in rollouts_of(groups) if rollout.finish_reason == "length"]


def group_stats(
    groups: Sequence[Group], completions: Sequence[Completion] | None = None
) -> dict[str, float | dict[str, float]]:
    """Statistics of a step: how many groups give a training signal, and why other groups give none.

    groups = groups_with_signal + all_truncated (no rollout ended by itself, equal rewards) + all_correct (every reward
    1) + all_incorrect (every reward 0) + other_constant (equal rewards, but neither 1 nor 0) + groups_ungraded (no
    reward at all).
    `ungraded`, `truncated` and `no_answer` are numbers of rollouts; `rollouts` is the total. `no_answer` means an empty
    final answer, and needs `completions`. `sampled_tokens` is the number of tokens that the policy sampled. `reward` is
    the mean over graded rollouts (nan if there are none). `reward_parts` are the means of the parts of the reward.
    """
    kinds = [_kind(group) for group in groups]
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = rollouts_of(groups)
    answers = {} if completions is None else {"no_answer": sum(not text.answer.strip() for text in completions)}
    parts = mean_reward_parts(groups)
    return {
        "groups": len(groups),
        **{kind: kinds.count(kind) for kind in _KINDS},
        "rollouts": len(rollouts),
        "ungraded": len(ungraded(groups)),
        "truncated": len(truncated(groups)),
        **answers,
        "sampled_tokens": sampled_tokens(rollouts),
        "reward": fmean(rewards) if rewards else float("nan"),
        **({"reward_parts": parts} if parts else {}),
    }


def sampled_tokens(rollouts: Iterable[Rollout]) -> int:
    """Number of tokens that the policy sampled."""
    return sum(sum(rollout.loss_mask) for rollout in rollouts)


def mean_reward_parts(groups: Sequence[Group], names: Collection[str] | None = None) -> dict[str, float]:
    """Mean of each named part of the rewards, over the verdicts that have this part. `names` selects parts."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for verdict in group.verdicts:
            for name, value in verdict.parts.items():
                if names is None or name in names:
                    values.setdefault(name, []).append(value)
    return {name: fmean(found) for name, found in sorted(values.items())}


_KINDS = ("groups_with_signal", "all_truncated", "all_correct", "all_incorrect", "other_constant", "groups_ungraded")


def _kind(group: Group) -> str:
    distinct = set(group.rewards)
    if not distinct:
        return "groups_ungraded"
    if len(distinct) > 1:
        return "groups_with_signal"
    if all(rollout.finish_reason == "length" for rollout in group.rollouts):
        return "all_truncated"
    return {1.0: "all_correct", 0.0: "all_incorrect"}.get(distinct.pop(), "other_constant")
