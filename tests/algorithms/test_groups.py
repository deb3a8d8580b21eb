"""Which rollouts carry a signal, and the statistics that say why the others do not."""

from dataclasses import replace

import pytest

from schoolhouse.algorithms.groups import (
    drop_constant_reward_groups,
    drop_ungraded,
    group_stats,
    mean_reward_parts,
    rollouts_of,
    truncated,
    ungraded,
    with_rewards,
)
from schoolhouse.types import Completion, Verdict
from tiny_groups import group, rewards_of


def test_groups_of_equal_rewards_are_dropped():
    groups = [group(1, 1), group(1, 0), group(None, 0), group(0.2, None, 0.3)]
    assert drop_constant_reward_groups(groups) == [groups[1], groups[3]]


def test_ungraded_rollouts_are_dropped_and_groups_without_a_reward_too():
    groups = drop_ungraded([group(1, None, 0), group(None, None)])
    assert [one.rewards for one in groups] == [(1, 0)]
    assert [rollout.key.sample for rollout in rollouts_of(groups)] == [0, 2]


def test_ungraded_and_truncated_rollouts_are_found():
    cut_off, context = group(0, 0, finish_reason="length", problem=1), group(1, finish_reason="context", problem=2)
    groups = [group(1, None), cut_off, context]
    assert [rollout.key.sample for rollout in ungraded(groups)] == [1]
    assert [rollout.key[3:5] for rollout in truncated(groups)] == [(1, 0), (1, 1)]


def test_other_rewards_keep_reasons_and_an_ungraded_rollout_gets_one():
    groups = with_rewards([group(1, None), group(0)], [0.5, None, None])
    assert rewards_of(groups) == [0.5, None, None]
    assert [verdict.reason for one in groups for verdict in one.verdicts] == [
        "no reward",
        "the verifier timed out",
        "no reward",
    ]


@pytest.mark.fault("no gradient")
def test_kinds_of_groups_add_up():
    groups = [
        group(1, 1),
        group(0, 0),
        group(0.5, 0.5),
        group(1, 0),
        group(None, None),
        group(0, None, finish_reason="length"),
    ]
    assert group_stats(groups) == {
        "groups": 6,
        "groups_with_signal": 1,
        "all_truncated": 1,
        "all_correct": 1,
        "all_incorrect": 1,
        "other_constant": 1,
        "groups_ungraded": 1,
        "rollouts": 12,
        "ungraded": 3,
        "truncated": 2,
        "sampled_tokens": sum(sum(rollout.loss_mask) for rollout in rollouts_of(groups)),
        "reward": pytest.approx(4 / 9),
    }


def test_empty_answers_are_counted_and_reward_parts_averaged():
    verdicts = (Verdict(1.0, parts={"right": 1.0, "brief": 0.5}), Verdict(0.0, parts={"right": 0.0}))
    groups = [replace(group(1, 0), verdicts=verdicts)]
    stats = group_stats(groups, [Completion("hm", "4"), Completion("hm", " ")])
    assert stats["no_answer"] == 1
    assert stats["reward_parts"] == {"brief": 0.5, "right": 0.5}
    assert mean_reward_parts(groups, ["brief"]) == {"brief": 0.5}


def test_ungraded_groups_have_no_mean_reward():
    assert str(group_stats([group(None)])["reward"]) == "nan"
