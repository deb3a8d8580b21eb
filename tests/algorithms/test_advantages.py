"""Credit: the published numbers for every estimator, and what cannot be judged counts nowhere."""

import math
from dataclasses import replace

import pytest

from schoolhouse.algorithms.advantages import group_advantage, scale_negatives, step_advantage, value_gains
from schoolhouse.algorithms.groups import (
    drop_constant_reward_groups,
    drop_ungraded,
    group_stats,
    mean_reward_parts,
    rollouts_of,
    truncated,
    ungraded,
)
from schoolhouse.algorithms.reward_shaping import (
    add_format_rewards,
    kl_in_reward,
    length_reward,
    overlong_penalty,
    soft_overlong_penalty,
)
from schoolhouse.types import NAN, Completion, FinishReason, Group, Key, Problem, Rollout, Verdict


def group(*scores: float | None, finish: FinishReason = "stop", problem: int = 0) -> Group:
    """Rollouts of a prompt of 2 and a reply of 1, 2, 3 ... tokens."""
    asked = Problem(f"p{problem}", (), "1")
    rollouts = tuple(
        Rollout(
            asked,
            Key(0, "test", 0, problem, g),
            tuple(range(3 + g)),
            (False, False) + (True,) * (1 + g),
            (NAN, NAN) + (-1.0,) * (1 + g),
            (2,),
            finish,
        )
        for g in range(len(scores))
    )
    return Group(asked, rollouts, tuple(Verdict(s, "" if s is not None else "clock ran out") for s in scores))


def advantages(*groups: Group, **options) -> list[float]:
    """The last token's advantage of each rollout."""
    return [row[-1] for row in group_advantage(groups, **options)]


TABLE = {  # rewards: (/ population std, / Bessel std, Dr. GRPO, RLOO), of the first and of the last rollout
    (1, 1, 0, 0): ((1.0, -1.0), (0.8660, -0.8660), (0.5, -0.5), (0.6667, -0.6667)),
    (1, 0, 0, 0): ((1.7321, -0.5774), (1.5, -0.5), (0.75, -0.25), (1.0, -0.3333)),
    (1, 1, 1, 0): ((0.5774, -1.7321), (0.5, -1.5), (0.25, -0.75), (0.3333, -1.0)),
    (1, 0, 0, 0, 0, 0, 0, 0): ((2.6458, -0.3780), (2.4749, -0.3536), (0.875, -0.125), (1.0, -0.1429)),
}
ESTIMATORS = [
    {"scale": "group_std", "ddof": 0, "std_eps": 0.0},
    {"scale": "group_std", "ddof": 1, "std_eps": 0.0},
    {"scale": "none"},
    {"baseline": "leave_one_out", "scale": "none"},
]


@pytest.mark.parametrize("rewards", TABLE)
@pytest.mark.parametrize("estimator", range(4))
def test_advantages_equal_the_published_table(rewards, estimator):
    expected = {1: TABLE[rewards][estimator][0], 0: TABLE[rewards][estimator][1]}
    assert advantages(group(*rewards), **ESTIMATORS[estimator]) == pytest.approx(
        [expected[r] for r in rewards], abs=5e-5
    )


def test_std_eps_is_added_to_the_deviation():
    assert advantages(group(1, 1, 0, 0), std_eps=0.1)[0] == pytest.approx(0.5 / (math.sqrt(1 / 3) + 0.1))


@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, 1 / 3, -2.7])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, {}, {"scale": "batch_std"}])
def test_equal_scores_give_exactly_zero(score, estimator):
    assert set(advantages(group(*[score] * 7), **estimator)) == {0.0}


def test_reinforce_keeps_the_reward_itself():
    assert advantages(group(1, 1, 0), group(0.5), baseline="none", scale="none") == [1, 1, 0, 0.5]


def test_a_scale_without_a_baseline_is_refused():
    with pytest.raises(ValueError, match='baseline "none" does not go with scale'):
        group_advantage([group(1, 0)], baseline="none", scale="group_std")


def test_batch_std_is_over_all_scores_of_the_step():
    rewards = [1, 1, 0, 0, 1, 0, 0, 0]
    std = math.sqrt(sum((r - 3 / 8) ** 2 for r in rewards) / 7)
    got = advantages(group(1, 1, 0, 0), group(1, 0, 0, 0), scale="batch_std", std_eps=0.0)
    assert got == pytest.approx([0.5 / std] * 2 + [-0.5 / std] * 2 + [0.75 / std] + [-0.25 / std] * 3)


def test_advantage_stands_at_written_tokens_alone():
    (first, second) = group_advantage([group(1, 0)], scale="none")
    assert first == [0.0, 0.0, 0.5]
    assert second == [0.0, 0.0, -0.5, -0.5]


def test_what_could_not_be_judged_is_no_zero():
    with_gap, without_it = advantages(group(1, None, 0, 0)), advantages(group(1, 0, 0))
    assert with_gap == [without_it[0], 0.0, *without_it[1:]]


def test_a_lone_judged_rollout_has_nobody_to_be_compared_with():
    assert advantages(group(1, None, None), baseline="leave_one_out") == [0, 0, 0]


def test_a_group_that_nobody_could_judge_gets_nothing():
    assert advantages(group(None, None)) == [0, 0]


def test_mixed_keeps_groups_that_disagree():
    groups = [group(1, 1), group(1, 0), group(None, 0), group(0.2, None, 0.3)]
    assert drop_constant_reward_groups(groups) == [groups[1], groups[3]]


def test_judged_drops_what_has_no_score():
    groups = drop_ungraded([group(1, None, 0), group(None, None)])
    assert [g.rewards for g in groups] == [(1, 0)]
    assert [r.key.sample for r in rollouts_of(groups)] == [0, 2]


def test_not_judged_and_truncated_name_their_rollouts():
    groups = [group(1, None), group(0, 0, finish="length", problem=1), group(1, finish="context", problem=2)]
    assert [r.key.sample for r in ungraded(groups)] == [1]
    assert [r.key[3:5] for r in truncated(groups)] == [(1, 0), (1, 1)]


@pytest.mark.fault("no gradient")
def test_signal_account_adds_up():
    groups = [
        group(1, 1),
        group(0, 0),
        group(0.5, 0.5),
        group(1, 0),
        group(None, None),
        group(0, None, finish="length"),
    ]
    account = group_stats(groups)
    assert account == {
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
        "sampled_tokens": sum(sum(r.loss_mask) for r in rollouts_of(groups)),
        "reward": pytest.approx(4 / 9),
    }


def test_signal_account_counts_empty_answers_and_averages_parts():
    verdicts = (Verdict(1.0, parts={"right": 1.0, "brief": 0.5}), Verdict(0.0, parts={"right": 0.0}))
    both = replace(group(1, 0), verdicts=verdicts)
    account = group_stats([both], [Completion("hm", "4"), Completion("hm", " ")])
    assert account["no_answer"] == 1
    assert account["reward_parts"] == {"brief": 0.5, "right": 0.5}


def test_signal_account_of_nothing_judged_has_no_reward():
    assert str(group_stats([group(None)])["reward"]) == "nan"


@pytest.mark.parametrize(
    "length, penalty",
    [(1, 0), (16384, 0), (17408, -0.25), (18432, -0.5), (20480, -1), (30000, -1)],
)
def test_soft_overlong_falls_from_the_cushion_to_the_limit(length, penalty):
    assert soft_overlong_penalty(length, limit=20480, buffer=4096) == penalty


def test_kl_in_reward_charges_the_sum_over_written_tokens():
    before = group(1, None, 0)
    now = [[9.0, 9.0] + [-1.0] * (1 + g) for g in range(3)]
    reference = [[NAN, NAN] + [-1.5] * (1 + g) for g in range(3)]
    (after,) = kl_in_reward([before], now, reference, kl_coef=0.1)
    assert [v.reward for v in after.verdicts] == [pytest.approx(1 - 0.05), None, pytest.approx(0 - 0.15)]
    assert [v.parts["kl"] for v in after.verdicts] == [0.5, 1.0, 1.5]
    assert after.rollouts == before.rollouts


def test_brevity_praises_the_shorter_of_right_answers_and_never_a_wrong_one_for_being_short():
    # lengths 1, 2, 3: preferences +0.5, 0, -0.5
    (shaped,) = length_reward([group(1.0, 1.0, 1.0)], 0.2)
    assert shaped.rewards == pytest.approx((1.1, 1.0, 0.9))
    (shaped,) = length_reward([group(0.0, 0.0, 0.0)], 0.2)
    assert shaped.rewards == pytest.approx((0.0, 0.0, -0.1))


def test_brevity_leaves_equal_lengths_and_unjudged_answers_alone():
    alone = group(1.0)
    assert length_reward([alone], 0.2) == [alone]
    (shaped,) = length_reward([group(1.0, None, 1.0)], 0.2)
    assert [v.reward for v in shaped.verdicts] == pytest.approx([1.1, None, 0.9])


def test_no_brevity_is_the_same_groups():
    groups = [group(1.0, 0.0)]
    assert length_reward(groups, 0.0) == groups


def test_the_whole_step_as_baseline_praises_a_group_that_agrees():
    """REINFORCE++: scores 1 1 | 1 0, mean .75, sample deviation .5."""
    found = advantages(group(1.0, 1.0), group(1.0, 0.0), baseline="batch_mean", scale="batch_std", std_eps=0.0)
    assert found == pytest.approx([0.5, 0.5, 0.5, -1.5])


def test_the_whole_step_as_baseline_does_not_go_with_the_deviation_of_a_group():
    with pytest.raises(ValueError, match="does not go with"):
        group_advantage([group(1.0, 1.0)], "batch_mean", "group_std")


def test_only_successes_teach_where_what_is_negative_weighs_nothing():
    assert scale_negatives([[0.0, 0.5], [0.0, -0.5]], 0.0) == [[0.0, 0.5], [0.0, 0.0]]
    assert scale_negatives([[0.0, -0.5]], 0.5) == [[0.0, -0.25]]


def test_the_toll_for_length_is_taken_from_what_could_be_judged():
    (tolled,) = overlong_penalty([group(1.0, None)], limit=3, buffer=2)
    assert [verdict.reward for verdict in tolled.verdicts] == [1.0, None]
    assert tolled.verdicts[1].parts == {"overlong": -0.25}
    (shorter,) = overlong_penalty([group(1.0, 1.0)], limit=2, buffer=1)
    assert [verdict.reward for verdict in shorter.verdicts] == [
        1.0,
        0.5,
    ]  # half way to a wrong one, as 0 between 1 and -1


def test_manners_are_added_with_their_weights_and_told_without():
    (found,) = add_format_rewards([group(1.0, None)], lambda rollout: {"form": 0.5, "other": 9.0}, {"form": 0.2})
    assert [verdict.reward for verdict in found.verdicts] == [1.1, None]
    assert mean_reward_parts([found], ["form"]) == {"form": 0.5}


def test_rewards_that_are_scaled_each_count_alike_whatever_their_range():
    """GDPO: centred and divided by their own deviation in the group, then added; who was not judged does not count."""
    form = {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}
    (found,) = add_format_rewards(
        [group(1.0, 0.0, 0.0, 1.0, None)], lambda r: {"form": form[r.key.sample]}, {"form": 0.5}, 1e-9
    )
    deviation = (1 / 3) ** 0.5
    expected = [0.75 / deviation, -0.25 / deviation, -0.75 / deviation, 0.25 / deviation]
    assert [verdict.reward for verdict in found.verdicts[:4]] == pytest.approx(expected)
    assert found.verdicts[4].reward is None
    assert mean_reward_parts([found], ["form"]) == {"form": 0.6}
    (population,) = add_format_rewards([group(1.0, 0.0)], lambda rollout: {"form": 0.0}, {"form": 0.5}, 1e-9, 0)
    assert [verdict.reward for verdict in population.verdicts] == pytest.approx([1.0, -1.0])


def test_a_reward_on_which_a_group_agrees_adds_nothing_where_each_is_scaled():
    (found,) = add_format_rewards([group(0.3, 0.3)], lambda rollout: {"form": 0.1}, {"form": 0.2}, 1e-4)
    assert [verdict.reward for verdict in found.verdicts] == [0.0, 0.0]
    assert drop_constant_reward_groups([found]) == []


def test_without_weights_nothing_is_asked():
    groups = [group(1.0, 0.0)]
    assert add_format_rewards(groups, lambda rollout: {}, {}) == groups


# --- steps


def test_a_step_is_worth_the_same_at_each_of_its_tokens_and_nothing_behind_the_last():
    rollout = Rollout(Problem("p", (), ""), Key(0, "t"), (1,) * 6, (False, True, True, True, True, True), (NAN,) * 6)
    assert step_advantage([rollout], [[3, 5]], [[0.5, -0.25]]) == [[0.0, 0.5, 0.5, -0.25, -0.25, 0.0]]
    assert step_advantage([rollout], [[]], [[]]) == [[0.0] * 6]


def test_progress_telescopes_so_that_more_steps_earn_nothing():
    assert value_gains([0.5, 0.75, 0.25], 0.5) == [0.0, 0.25, -0.5]
    assert sum(value_gains([0.5, 0.9, 0.9, 0.9, 0.7], 0.3)) == pytest.approx(0.7 - 0.3)
    assert value_gains([], 0.3) == []
