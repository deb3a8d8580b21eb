"""Functions that select and count the rollouts of graded groups.

The functions show which groups give a training signal, and why the other groups give none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from schoolhouse.types import Completion, Group, Rollout


def rollouts_of(groups: Iterable[Group]) -> list[Rollout]:
    """All rollouts of the groups as one list [P*G], group by group. The rows of advantages have the same order as the
    returned list."""
    return [rollout for group in groups for rollout in group.rollouts]


def drop_constant_reward_groups(groups: Iterable[Group]) -> list[Group]:
    """Keep only the groups whose rewards differ. If all rewards of a group are equal, all its advantages are zero."""
    return [group for group in groups if len(set(group.rewards)) > 1]


def drop_ungraded(groups: Iterable[Group]) -> list[Group]:
    """Remove the ungraded rollouts from each group. A group without any graded rollout is removed completely.

    The baselines stay the same, because a baseline never includes ungraded rollouts. The loss and its denominators no
    longer include the ungraded rollouts.
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
    """Return the rollouts for which the verifier gave no reward (None)."""
    return [
        rollout
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.reward is None
    ]


def with_rewards(groups: Sequence[Group], rewards: Sequence[float | None]) -> list[Group]:
    """Replace the rewards of the groups. `rewards` has one value per rollout, in the order of `rollouts_of`.

    The value None marks a rollout as ungraded.
    """
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
    """Return the truncated rollouts, which reached the token limit before the completion was complete.

    To leave truncated rollouts out of the loss, call `pack(rollouts, without(token_weight, truncated(groups)))`.
    """
    return [rollout for rollout in rollouts_of(groups) if rollout.finish_reason == "length"]


def group_stats(
    groups: Sequence[Group], completions: Sequence[Completion] | None = None
) -> dict[str, float | dict[str, float]]:
    """Count how many groups of a step give a training signal, and why the other groups give none.

    Each group is counted under one of six keys. The key `groups_with_signal` counts groups whose rewards differ. If all
    rewards of a group are equal, the group is counted under one of four keys: `all_truncated` if every rollout was
    truncated, `all_correct` if every reward is 1, `all_incorrect` if every reward is 0, otherwise `other_constant`. The
    key `groups_ungraded` counts groups in which no rollout has a reward. The key `groups` is the total number of
    groups. The keys `ungraded`, `truncated` and `no_answer` are numbers of rollouts, out of `rollouts` in total. A
    rollout counts as `no_answer` if its final answer is empty; the key `no_answer` needs the argument `completions`.
    The key `sampled_tokens` is the number of tokens that the policy sampled. The key `reward` is the mean reward of the
    graded rollouts (nan if there are none). The key `reward_parts` has the mean of each part of the reward.
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
    """The number of tokens that the policy sampled."""
    return sum(sum(rollout.loss_mask) for rollout in rollouts)


def mean_reward_parts(groups: Sequence[Group], names: Collection[str] | None = None) -> dict[str, float]:
    """The mean of each named part of the rewards, computed only from the verdicts that have this part.

    If `names` is given, only the parts with these names are returned.
    """
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
