"""Rewards beside the task's own: published numbers, and ungraded rollouts that stay ungraded."""

import pytest

from schoolhouse.algorithms.groups import drop_constant_reward_groups, mean_reward_parts
from schoolhouse.algorithms.reward_shaping import (
    add_format_rewards,
    kl_in_reward,
    length_reward,
    overlong_penalty,
    soft_overlong_penalty,
)
from schoolhouse.types import NAN
from tiny_groups import group, rewards_of


@pytest.mark.parametrize(
    "length, penalty",
    [(1, 0), (16384, 0), (17408, -0.25), (18432, -0.5), (20480, -1), (30000, -1)],
)
def test_the_overlong_penalty_falls_over_the_buffer(length: int, penalty: float):
    assert soft_overlong_penalty(length, limit=20480, buffer=4096) == penalty


def test_the_overlong_penalty_leaves_ungraded_rollouts_ungraded():
    (shaped,) = overlong_penalty([group(1.0, None)], limit=3, buffer=2)
    assert rewards_of([shaped]) == [1.0, None]
    assert shaped.verdicts[1].parts == {"overlong": -0.25}


def test_the_overlong_penalty_is_half_the_range_of_rewards_at_the_limit():
    """As the paper's penalty of 1 is half of the range from -1 to 1."""
    (shaped,) = overlong_penalty([group(1.0, 1.0)], limit=2, buffer=1)
    assert rewards_of([shaped]) == [1.0, 0.5]


def test_kl_in_reward_subtracts_the_sum_over_the_loss_mask():
    before = group(1, None, 0)
    policy = [[9.0, 9.0] + [-1.0] * (1 + g) for g in range(3)]
    reference = [[NAN, NAN] + [-1.5] * (1 + g) for g in range(3)]
    (after,) = kl_in_reward([before], policy, reference, kl_coef=0.1)
    assert rewards_of([after]) == [pytest.approx(1 - 0.05), None, pytest.approx(0 - 0.15)]
    assert [verdict.parts["kl"] for verdict in after.verdicts] == [0.5, 1.0, 1.5]
    assert after.rollouts == before.rollouts


def test_the_length_reward_prefers_shorter_right_answers_and_never_rewards_a_short_wrong_one():
    # lengths 1, 2, 3: preferences +0.5, 0, -0.5
    (right,) = length_reward([group(1.0, 1.0, 1.0)], 0.2)
    assert right.rewards == pytest.approx((1.1, 1.0, 0.9))
    (wrong,) = length_reward([group(0.0, 0.0, 0.0)], 0.2)
    assert wrong.rewards == pytest.approx((0.0, 0.0, -0.1))


def test_the_length_reward_leaves_equal_lengths_and_ungraded_rollouts_alone():
    single = group(1.0)
    assert length_reward([single], 0.2) == [single]
    (shaped,) = length_reward([group(1.0, None, 1.0)], 0.2)
    assert rewards_of([shaped]) == pytest.approx([1.1, None, 0.9])


def test_a_length_reward_of_0_changes_nothing():
    groups = [group(1.0, 0.0)]
    assert length_reward(groups, 0.0) == groups


def test_format_rewards_are_added_with_their_weights_and_recorded_without():
    (shaped,) = add_format_rewards([group(1.0, None)], lambda rollout: {"format": 0.5, "other": 9.0}, {"format": 0.2})
    assert rewards_of([shaped]) == [1.1, None]
    assert mean_reward_parts([shaped], ["format"]) == {"format": 0.5}


def test_normalized_rewards_count_alike_whatever_their_range():
    """GDPO: each reward is centred and divided by its own deviation in the group. Ungraded rollouts do not count."""
    formats = {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}
    (shaped,) = add_format_rewards(
        [group(1.0, 0.0, 0.0, 1.0, None)],
        lambda rollout: {"format": formats[rollout.key.sample]},
        {"format": 0.5},
        1e-9,
    )
    deviation = (1 / 3) ** 0.5
    expected = [0.75 / deviation, -0.25 / deviation, -0.75 / deviation, 0.25 / deviation]
    assert [verdict.reward for verdict in shaped.verdicts[:4]] == pytest.approx(expected)
    assert shaped.verdicts[4].reward is None
    assert mean_reward_parts([shaped], ["format"]) == {"format": 0.6}
    (population,) = add_format_rewards([group(1.0, 0.0)], lambda rollout: {"format": 0.0}, {"format": 0.5}, 1e-9, 0)
    assert rewards_of([population]) == pytest.approx([1.0, -1.0])


def test_a_normalized_reward_that_is_equal_in_a_group_adds_nothing():
    (shaped,) = add_format_rewards([group(0.3, 0.3)], lambda rollout: {"format": 0.1}, {"format": 0.2}, 1e-4)
    assert rewards_of([shaped]) == [0.0, 0.0]
    assert drop_constant_reward_groups([shaped]) == []


def test_without_weights_no_format_reward_is_computed():
    groups = [group(1.0, 0.0)]
    assert add_format_rewards(groups, lambda rollout: {}, {}) == groups
