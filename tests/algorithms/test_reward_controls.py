"""Controls change verdicts as they say."""

from collections import Counter

import pytest

from schoolhouse.algorithms.reward_controls import apply_reward_control
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, Verdict


def groups_of(*rows: tuple[float | None, ...]) -> list[Group]:
    made = []
    for p, scores in enumerate(rows):
        problem = Problem(str(p), (), "1")
        rollouts = tuple(
            Rollout(problem, Key(0, "t", 0, p, g), (1, 2), (False, True), (NAN, -1.0)) for g in range(len(scores))
        )
        made.append(Group(problem, rollouts, tuple(Verdict(s, "" if s is not None else "clock") for s in scores)))
    return made


def scores_of(groups: list[Group]) -> list[float | None]:
    return [verdict.reward for group in groups for verdict in group.verdicts]


def test_none_leaves_everything_as_it_is():
    groups = groups_of((1.0, 0.0, None))
    assert apply_reward_control("none", groups, 0, 0) == groups


def test_flipped_turns_right_into_wrong_and_leaves_the_unjudged():
    assert scores_of(apply_reward_control("flipped", groups_of((1.0, 0.0, None)), 0, 0)) == [0.0, 1.0, None]


def test_shuffled_keeps_the_scores_of_the_step_and_breaks_their_order():
    groups = groups_of(*[(1.0, 0.0, 1.0, 1.0)] * 8)
    found = scores_of(apply_reward_control("shuffled", groups, 0, 3))
    assert Counter(found) == Counter(scores_of(groups))
    assert found != scores_of(groups)
    assert found == scores_of(apply_reward_control("shuffled", groups, 0, 3))


def test_shuffled_goes_from_one_problem_to_another():
    """Within its group a score would still tell an easy problem from a hard one."""
    found = apply_reward_control("shuffled", groups_of(*[(1.0,) * 4, (0.0,) * 4] * 4), 0, 0)
    assert any(len({verdict.reward for verdict in group.verdicts}) == 2 for group in found)


def test_random_rewards_are_a_coin_whatever_was_said():
    groups = groups_of(*[(1.0,) * 16] * 16)
    found = scores_of(apply_reward_control("random", groups, 0, 0))
    assert set(found) == {0.0, 1.0}
    assert 90 < sum(score or 0 for score in found) < 166


@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 0)])
def test_random_rewards_differ_from_step_to_step_and_seed_to_seed(seed: int, step: int):
    groups = groups_of(*[(1.0,) * 16] * 16)
    assert scores_of(apply_reward_control("random", groups, seed, step)) != scores_of(
        apply_reward_control("random", groups, 0, 0)
    )
