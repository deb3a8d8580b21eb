"""Credit: the published numbers for every estimator, and what cannot be judged counts nowhere."""

import math
from dataclasses import replace

import pytest

from schoolhouse.credit import (
    against_overlong,
    group_advantage,
    judged,
    kl_in_reward,
    mean_parts,
    mixed,
    not_judged,
    prefer_brief,
    progress,
    rollouts_of,
    signal_account,
    soft_overlong,
    step_advantage,
    truncated,
    weaken,
    with_manners,
)
from schoolhouse.types import NAN, Finish, Group, Key, Problem, Reply, Rollout, Verdict


def group(*scores: float | None, finish: Finish = "stop", problem: int = 0) -> Group:
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
    {"scale": "group_std", "ddof": 0, "guard": 0.0},
    {"scale": "group_std", "ddof": 1, "guard": 0.0},
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


def test_the_guard_is_added_to_the_deviation():
    assert advantages(group(1, 1, 0, 0), guard=0.1)[0] == pytest.approx(0.5 / (math.sqrt(1 / 3) + 0.1))


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
    got = advantages(group(1, 1, 0, 0), group(1, 0, 0, 0), scale="batch_std", guard=0.0)
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
    assert mixed(groups) == [groups[1], groups[3]]


def test_judged_drops_what_has_no_score():
    groups = judged([group(1, None, 0), group(None, None)])
    assert [g.scores for g in groups] == [(1, 0)]
    assert [r.key.sample for r in rollouts_of(groups)] == [0, 2]


def test_not_judged_and_truncated_name_their_rollouts():
    groups = [group(1, None), group(0, 0, finish="length", problem=1), group(1, finish="given", problem=2)]
    assert [r.key.sample for r in not_judged(groups)] == [1]
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
    account = signal_account(groups)
    assert account == {
        "groups": 6,
        "groups_mixed": 1,
        "all_truncated": 1,
        "all_right": 1,
        "all_wrong": 1,
        "other_equal": 1,
        "groups_not_judged": 1,
        "rollouts": 12,
        "not_judged": 3,
        "truncated": 2,
        "sampled_tokens": sum(sum(r.written) for r in rollouts_of(groups)),
        "reward": pytest.approx(4 / 9),
    }


def test_signal_account_counts_empty_answers_and_averages_parts():
    verdicts = (Verdict(1.0, parts={"right": 1.0, "brief": 0.5}), Verdict(0.0, parts={"right": 0.0}))
    both = replace(group(1, 0), verdicts=verdicts)
    account = signal_account([both], [Reply("hm", "4"), Reply("hm", " ")])
    assert account["no_answer"] == 1
    assert account["reward_parts"] == {"brief": 0.5, "right": 0.5}


def test_signal_account_of_nothing_judged_has_no_reward():
    assert str(signal_account([group(None)])["reward"]) == "nan"


@pytest.mark.parametrize(
    "length, penalty",
    [(1, 0), (16384, 0), (17408, -0.25), (18432, -0.5), (20480, -1), (30000, -1)],
)
def test_soft_overlong_falls_from_the_cushion_to_the_limit(length, penalty):
    assert soft_overlong(length, limit=20480, cushion=4096) == penalty


def test_kl_in_reward_charges_the_sum_over_written_tokens():
    before = group(1, None, 0)
    now = [[9.0, 9.0] + [-1.0] * (1 + g) for g in range(3)]
    reference = [[NAN, NAN] + [-1.5] * (1 + g) for g in range(3)]
    (after,) = kl_in_reward([before], now, reference, beta=0.1)
    assert [v.score for v in after.verdicts] == [pytest.approx(1 - 0.05), None, pytest.approx(0 - 0.15)]
    assert [v.parts["kl"] for v in after.verdicts] == [0.5, 1.0, 1.5]
    assert after.rollouts == before.rollouts


def test_brevity_praises_the_shorter_of_right_answers_and_never_a_wrong_one_for_being_short():
    # lengths 1, 2, 3: preferences +0.5, 0, -0.5
    (shaped,) = prefer_brief([group(1.0, 1.0, 1.0)], 0.2)
    assert shaped.scores == pytest.approx((1.1, 1.0, 0.9))
    (shaped,) = prefer_brief([group(0.0, 0.0, 0.0)], 0.2)
    assert shaped.scores == pytest.approx((0.0, 0.0, -0.1))


def test_brevity_leaves_equal_lengths_and_unjudged_answers_alone():
    alone = group(1.0)
    assert prefer_brief([alone], 0.2) == [alone]
    (shaped,) = prefer_brief([group(1.0, None, 1.0)], 0.2)
    assert [v.score for v in shaped.verdicts] == pytest.approx([1.1, None, 0.9])


def test_no_brevity_is_the_same_groups():
    groups = [group(1.0, 0.0)]
    assert prefer_brief(groups, 0.0) == groups


def test_the_whole_step_as_baseline_praises_a_group_that_agrees():
    """REINFORCE++: scores 1 1 | 1 0, mean .75, sample deviation .5."""
    found = advantages(group(1.0, 1.0), group(1.0, 0.0), baseline="batch_mean", scale="batch_std", guard=0.0)
    assert found == pytest.approx([0.5, 0.5, 0.5, -1.5])


def test_the_whole_step_as_baseline_does_not_go_with_the_deviation_of_a_group():
    with pytest.raises(ValueError, match="does not go with"):
        group_advantage([group(1.0, 1.0)], "batch_mean", "group_std")


def test_only_successes_teach_where_what_is_negative_weighs_nothing():
    assert weaken([[0.0, 0.5], [0.0, -0.5]], 0.0) == [[0.0, 0.5], [0.0, 0.0]]
    assert weaken([[0.0, -0.5]], 0.5) == [[0.0, -0.25]]


def test_the_toll_for_length_is_taken_from_what_could_be_judged():
    (tolled,) = against_overlong([group(1.0, None)], limit=3, cushion=2)
    assert [verdict.score for verdict in tolled.verdicts] == [1.0, None]
    assert tolled.verdicts[1].parts == {"overlong": -0.25}
    (shorter,) = against_overlong([group(1.0, 1.0)], limit=2, cushion=1)
    assert [verdict.score for verdict in shorter.verdicts] == [
        1.0,
        0.5,
    ]  # half way to a wrong one, as 0 between 1 and -1


def test_manners_are_added_with_their_weights_and_told_without():
    (found,) = with_manners([group(1.0, None)], lambda rollout: {"form": 0.5, "other": 9.0}, {"form": 0.2})
    assert [verdict.score for verdict in found.verdicts] == [1.1, None]
    assert mean_parts([found], ["form"]) == {"form": 0.5}


def test_rewards_that_are_scaled_each_count_alike_whatever_their_range():
    """GDPO: centred and divided by their own deviation in the group, then added; who was not judged does not count."""
    form = {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}
    (found,) = with_manners(
        [group(1.0, 0.0, 0.0, 1.0, None)], lambda r: {"form": form[r.key.sample]}, {"form": 0.5}, 1e-9
    )
    deviation = (1 / 3) ** 0.5
    expected = [0.75 / deviation, -0.25 / deviation, -0.75 / deviation, 0.25 / deviation]
    assert [verdict.score for verdict in found.verdicts[:4]] == pytest.approx(expected)
    assert found.verdicts[4].score is None
    assert mean_parts([found], ["form"]) == {"form": 0.6}
    (population,) = with_manners([group(1.0, 0.0)], lambda rollout: {"form": 0.0}, {"form": 0.5}, 1e-9, 0)
    assert [verdict.score for verdict in population.verdicts] == pytest.approx([1.0, -1.0])


def test_a_reward_on_which_a_group_agrees_adds_nothing_where_each_is_scaled():
    (found,) = with_manners([group(0.3, 0.3)], lambda rollout: {"form": 0.1}, {"form": 0.2}, 1e-4)
    assert [verdict.score for verdict in found.verdicts] == [0.0, 0.0]
    assert mixed([found]) == []


def test_without_weights_nothing_is_asked():
    groups = [group(1.0, 0.0)]
    assert with_manners(groups, lambda rollout: {}, {}) == groups


# --- steps


def test_a_step_is_worth_the_same_at_each_of_its_tokens_and_nothing_behind_the_last():
    rollout = Rollout(Problem("p", (), ""), Key(0, "t"), (1,) * 6, (False, True, True, True, True, True), (NAN,) * 6)
    assert step_advantage([rollout], [[3, 5]], [[0.5, -0.25]]) == [[0.0, 0.5, 0.5, -0.25, -0.25, 0.0]]
    assert step_advantage([rollout], [[]], [[]]) == [[0.0] * 6]


def test_progress_telescopes_so_that_more_steps_earn_nothing():
    assert progress([0.5, 0.75, 0.25], 0.5) == [0.0, 0.25, -0.5]
    assert sum(progress([0.5, 0.9, 0.9, 0.9, 0.7], 0.3)) == pytest.approx(0.7 - 0.3)
    assert progress([], 0.3) == []
