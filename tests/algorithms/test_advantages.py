"""Advantages: the published numbers of every estimator, and ungraded rollouts that count nowhere."""

import math
from typing import Any

import pytest

from schoolhouse.algorithms.advantages import (
    distillation_advantage,
    group_advantage,
    masked_mean,
    scale_negatives,
    step_advantage,
    subtract_to_go,
    value_gains,
)
from schoolhouse.types import NAN, Group, Key, Problem, Rollout
from tiny_groups import group


def advantages(*groups: Group, **options: Any) -> list[float]:
    """The last token's advantage of each rollout."""
    return [row[-1] for row in group_advantage(groups, **options)]


TABLE = {  # rewards: (/ population std, / Bessel std, Dr. GRPO, RLOO), of the first and of the last rollout
    (1, 1, 0, 0): ((1.0, -1.0), (0.8660, -0.8660), (0.5, -0.5), (0.6667, -0.6667)),
    (1, 0, 0, 0): ((1.7321, -0.5774), (1.5, -0.5), (0.75, -0.25), (1.0, -0.3333)),
    (1, 1, 1, 0): ((0.5774, -1.7321), (0.5, -1.5), (0.25, -0.75), (0.3333, -1.0)),
    (1, 0, 0, 0, 0, 0, 0, 0): ((2.6458, -0.3780), (2.4749, -0.3536), (0.875, -0.125), (1.0, -0.1429)),
}
ESTIMATORS: list[dict[str, Any]] = [
    {"scale": "group_std", "ddof": 0, "std_eps": 0.0},
    {"scale": "group_std", "ddof": 1, "std_eps": 0.0},
    {"scale": "none"},
    {"baseline": "leave_one_out", "scale": "none"},
]


@pytest.mark.parametrize("rewards", TABLE)
@pytest.mark.parametrize("estimator", range(4))
def test_advantages_equal_the_published_table(rewards: tuple[int, ...], estimator: int):
    expected = {1: TABLE[rewards][estimator][0], 0: TABLE[rewards][estimator][1]}
    assert advantages(group(*rewards), **ESTIMATORS[estimator]) == pytest.approx(
        [expected[reward] for reward in rewards], abs=5e-5
    )


def test_std_eps_is_added_to_the_deviation():
    assert advantages(group(1, 1, 0, 0), std_eps=0.1)[0] == pytest.approx(0.5 / (math.sqrt(1 / 3) + 0.1))


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -2.7])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, {}, {"scale": "batch_std"}])
def test_equal_rewards_give_exactly_zero(reward: float, estimator: dict[str, Any]):
    assert set(advantages(group(*[reward] * 7), **estimator)) == {0.0}


def test_reinforce_keeps_the_reward_itself():
    assert advantages(group(1, 1, 0), group(0.5), baseline="none", scale="none") == [1, 1, 0, 0.5]


def test_a_scale_without_a_baseline_is_refused():
    with pytest.raises(ValueError, match='baseline "none" cannot be combined with scale'):
        group_advantage([group(1, 0)], baseline="none", scale="group_std")


def test_batch_std_is_over_all_rewards_of_the_step():
    rewards = [1, 1, 0, 0, 1, 0, 0, 0]
    std = math.sqrt(sum((reward - 3 / 8) ** 2 for reward in rewards) / 7)
    found = advantages(group(1, 1, 0, 0), group(1, 0, 0, 0), scale="batch_std", std_eps=0.0)
    assert found == pytest.approx([0.5 / std] * 2 + [-0.5 / std] * 2 + [0.75 / std] + [-0.25 / std] * 3)


def test_groups_of_the_scope_count_in_batch_std():
    """Rewards 1 1, 1 1 and 1 0: the scope has six, the last group alone two."""
    groups = [group(1, 1), group(1, 1), group(1, 0)]
    alone = advantages(groups[2], scale="batch_std", scope=groups[2:])
    in_scope = advantages(groups[2], scale="batch_std", scope=groups)
    assert max(in_scope) == pytest.approx(0.5 / (6**-0.5 + 1e-4))
    assert max(alone) == pytest.approx(0.5 / (0.5**0.5 + 1e-4))


def test_batch_mean_gives_an_advantage_to_groups_of_equal_rewards():
    """REINFORCE++: rewards 1 1 | 1 0, mean .75, sample deviation .5."""
    found = advantages(group(1.0, 1.0), group(1.0, 0.0), baseline="batch_mean", scale="batch_std", std_eps=0.0)
    assert found == pytest.approx([0.5, 0.5, 0.5, -1.5])


def test_batch_mean_with_group_std_is_refused():
    with pytest.raises(ValueError, match='baseline "batch_mean" cannot be combined with scale "group_std"'):
        group_advantage([group(1.0, 1.0)], "batch_mean", "group_std")


def test_advantages_are_zero_outside_the_loss_mask():
    (first, second) = group_advantage([group(1, 0)], scale="none")
    assert first == [0.0, 0.0, 0.5]
    assert second == [0.0, 0.0, -0.5, -0.5]


def test_an_ungraded_rollout_does_not_count_as_a_zero():
    with_ungraded, without_it = advantages(group(1, None, 0, 0)), advantages(group(1, 0, 0))
    assert with_ungraded == [without_it[0], 0.0, *without_it[1:]]


def test_a_single_graded_rollout_has_advantage_zero():
    assert advantages(group(1, None, None), baseline="leave_one_out") == [0, 0, 0]


def test_an_ungraded_group_has_advantage_zero():
    assert advantages(group(None, None)) == [0, 0]


def test_negative_advantages_are_scaled_and_positive_ones_stay():
    assert scale_negatives([[0.0, 0.5], [0.0, -0.5]], 0.0) == [[0.0, 0.5], [0.0, 0.0]]
    assert scale_negatives([[0.0, -0.5]], 0.5) == [[0.0, -0.25]]


# --- steps


def test_each_token_of_a_step_has_its_value_and_tokens_behind_the_last_step_have_0():
    rollout = Rollout(Problem("p", (), ""), Key(0, "t"), (1,) * 6, (False, True, True, True, True, True), (NAN,) * 6)
    assert step_advantage([rollout], [[3, 5]], [[0.5, -0.25]]) == [[0.0, 0.5, 0.5, -0.25, -0.25, 0.0]]
    assert step_advantage([rollout], [[]], [[]]) == [[0.0] * 6]


def test_value_gains_telescope_so_that_more_steps_earn_nothing():
    assert value_gains([0.5, 0.75, 0.25], 0.5) == [0.0, 0.25, -0.5]
    assert sum(value_gains([0.5, 0.9, 0.9, 0.9, 0.7], 0.3)) == pytest.approx(0.7 - 0.3)
    assert value_gains([], 0.3) == []


# --- MaxRL: the mean of the group divides


def test_maxrl_divides_by_the_share_of_solved_rollouts():
    """With binary rewards, the successes of a group get (1 - p) / p, and its failures -1."""
    assert advantages(group(1, 0, 0, 0), scale="group_mean") == [3.0, -1.0, -1.0, -1.0]
    assert advantages(group(1, 1, 1, 0), scale="group_mean") == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    assert advantages(group(0, 0), group(1, 1), scale="group_mean") == [0.0] * 4


def test_maxrl_has_no_advantage_where_the_mean_is_not_above_zero():
    assert advantages(group(0.5, -0.5), group(0.0, -1.0), scale="group_mean") == [0.0] * 4


# --- costs of tokens


def test_a_token_pays_its_own_cost_and_those_of_later_tokens():
    groups = [group(1.0, 0.0)]  # completions of 1 and 2 tokens
    costs = [[9.0, 9.0, 0.25], [9.0, 9.0, 0.5, 0.125]]
    assert subtract_to_go(groups, costs) == [[0, 0, 0.75], [0, 0, -0.625, -0.125]]
    assert subtract_to_go(groups, costs, "mean") == [[0, 0, 0.25], [0, 0, -1.125, -0.625]]
    assert subtract_to_go(groups, costs, "leave_one_out") == [[0, 0, 0.75], [0, 0, -1.625, -1.125]]


def test_reinforce_pp_normalises_over_the_tokens_of_the_step():
    """The tokens of both groups before the normalisation: .75, -.625, -.125 and 2."""
    groups, costs = [group(1.0, 0.0), group(2.0)], [[0, 0, 0.25], [0, 0, 0.5, 0.125], [0, 0, 0]]
    for ddof, variance in ((0, 3.96875 / 4), (1, 3.96875 / 3)):
        rows = subtract_to_go(groups, costs, "batch_mean", "batch_std", std_eps=0.0, ddof=ddof)
        tokens = [value for row in rows for value in row if value]
        expected = [(x - 0.5) / math.sqrt(variance) for x in (0.75, -0.625, -0.125, 2.0)]
        assert tokens == pytest.approx(expected)


def test_ungraded_rollouts_pay_nothing_and_count_in_no_mean():
    graded = subtract_to_go([group(1.0, 0.0)], [[0, 0, 0.25], [0, 0, 0.5, 0.125]], "batch_mean", "batch_std")
    groups, costs = [group(1.0, 0.0, None)], [[0, 0, 0.25], [0, 0, 0.5, 0.125], [0, 0, 7.0, 7.0, 7.0]]
    assert subtract_to_go(groups, costs, "batch_mean", "batch_std") == [*graded, [0.0] * 5]


@pytest.mark.parametrize(("baseline", "scale"), [("mean", "group_std"), ("mean", "group_mean"), ("none", "batch_std")])
def test_costs_of_tokens_refuse_a_scale_that_does_not_fit(baseline: Any, scale: Any):
    with pytest.raises(ValueError, match="cannot be combined"):
        subtract_to_go([group(1.0, 0.0)], [[0, 0, 0], [0, 0, 0, 0]], baseline, scale)


# --- distillation


def test_distillation_compares_the_teacher_with_the_sampler_in_the_loss_mask():
    rollouts = group(0.0, 0.0).rollouts  # the sampler's log-probability is -1
    teacher = [[0, 0, -0.25], [0, 0, -3.0, -1.0]]
    rows = distillation_advantage(rollouts, teacher)
    assert rows == [[0, 0, 0.75], [0, 0, -2.0, 0]]
    assert masked_mean(rollouts, rows) == pytest.approx(-1.25 / 3)
    assert masked_mean([], []) == 0.0
