"""The arms change verdicts as they say, and the page tells what held."""

from collections import Counter

from schoolhouse.claims.grpo_controls import Config, flipped, markdown, randomly, shuffled
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
    return [verdict.score for group in groups for verdict in group.verdicts]


def test_flipped_turns_right_into_wrong_and_leaves_the_unjudged():
    assert scores_of(flipped(0, groups_of((1.0, 0.0, None)))) == [0.0, 1.0, None]


def test_shuffled_keeps_the_scores_of_the_step_and_breaks_their_order():
    groups = groups_of(*[(1.0, 0.0, 1.0, 1.0)] * 8)
    found = scores_of(shuffled(3, groups))
    assert Counter(found) == Counter(scores_of(groups))
    assert found != scores_of(groups)
    assert found == scores_of(shuffled(3, groups))


def test_random_rewards_are_a_coin_whatever_was_said():
    groups = groups_of(*[(1.0,) * 16] * 16)
    found = scores_of(randomly(0, groups))
    assert set(found) == {0.0, 1.0}
    assert 90 < sum(score or 0 for score in found) < 166
    assert found != scores_of(randomly(1, groups))


def test_the_page_says_what_did_not_hold():
    arm = {"pass_at_1": 0.5, "interval": [0.4, 0.6], "thought_tokens": 9.0, "change": 0.2}
    config = Config(model="it").model_dump(mode="json")
    page = markdown(
        {"verdict": "FAIL", "margin": 0.05, "config": config, "arms": {"random": arm}, "holds": {"random": False}}
    )
    assert page.startswith("# grpo_controls: FAIL")
    assert "| random | 0.500 [0.400, 0.600] | +0.200 | 9.0 | NO |" in page
