"""Each control replaces rewards as it says."""

from collections import Counter

import pytest

from schoolhouse.algorithms.reward_controls import apply_reward_control
from schoolhouse.types import Group
from tiny_groups import group, rewards_of


def groups_of(*rows: tuple[float | None, ...]) -> list[Group]:
    """A group for each row of rewards, each of another problem."""
    return [group(*rewards, problem=problem) for problem, rewards in enumerate(rows)]


def test_none_leaves_everything_as_it_is():
    groups = groups_of((1.0, 0.0, None))
    assert apply_reward_control("none", groups, 0, 0) == groups


def test_flipped_turns_right_into_wrong_and_leaves_ungraded_rollouts():
    assert rewards_of(apply_reward_control("flipped", groups_of((1.0, 0.0, None)), 0, 0)) == [0.0, 1.0, None]


def test_constant_gives_no_reward_and_leaves_ungraded_rollouts():
    assert rewards_of(apply_reward_control("constant", groups_of((1.0, 0.0, None)), 0, 0)) == [0.0, 0.0, None]


def test_shuffled_keeps_the_rewards_of_the_step_and_breaks_their_order():
    groups = groups_of(*[(1.0, 0.0, 1.0, 1.0)] * 8)
    shuffled = rewards_of(apply_reward_control("shuffled", groups, 0, 3))
    assert Counter(shuffled) == Counter(rewards_of(groups))
    assert shuffled != rewards_of(groups)
    assert shuffled == rewards_of(apply_reward_control("shuffled", groups, 0, 3))


def test_shuffled_moves_rewards_between_problems():
    """Shuffled within its group, a reward would still tell an easy problem from a hard one."""
    shuffled = apply_reward_control("shuffled", groups_of(*[(1.0,) * 4, (0.0,) * 4] * 4), 0, 0)
    assert any(len(set(one.rewards)) == 2 for one in shuffled)


def test_random_rewards_are_a_coin_whatever_the_completion():
    groups = groups_of(*[(1.0,) * 16] * 16)
    rewards = rewards_of(apply_reward_control("random", groups, 0, 0))
    assert set(rewards) == {0.0, 1.0}
    assert 90 < sum(reward or 0 for reward in rewards) < 166


@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 0)])
def test_random_rewards_differ_between_steps_and_seeds(seed: int, step: int):
    groups = groups_of(*[(1.0,) * 16] * 16)
    assert rewards_of(apply_reward_control("random", groups, seed, step)) != rewards_of(
        apply_reward_control("random", groups, 0, 0)
    )
