"""Advice comes when something keeps a run from learning, in words that say what to do, and not before."""

import pytest

from schoolhouse.runs.diagnostics import WINDOW, diagnose

HEALTHY = {
    "groups": 10,
    "groups_with_signal": 5,
    "all_correct": 3,
    "all_incorrect": 2,
    "groups_ungraded": 0,
    "rollouts": 80,
    "ungraded": 0,
    "truncated": 4,
    "no_answer": 4,
    "logprob_gap": 0.001,
}


def about(**changes):
    return diagnose([HEALTHY | changes] * WINDOW)


def test_a_healthy_run_is_left_alone():
    assert about() == {}


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("all_correct", {"all_correct": 6}, "every sample of 60 % of the problems was right: raise the difficulty"),
        ("all_incorrect", {"all_incorrect": 8}, "every sample of 80 % of the problems was wrong"),
        ("truncated", {"truncated": 40, "no_answer": 40}, "50 % of the answers were cut off at `length`"),
        ("no_answer", {"no_answer": 44}, "55 % of the answers are empty"),
        ("ungraded", {"ungraded": 8}, "10 % of the answers could not be judged"),
        ("ungraded", {"ungraded": 80, "groups_ungraded": 10}, "not one answer could be judged"),
        ("no_signal", {"groups_with_signal": 0}, "the weights do not move"),
        ("logprob_gap", {"logprob_gap": 0.05}, "lie 0.050 apart"),
    ],
)
@pytest.mark.fault("reward does not rise", "no gradient")
def test_what_is_wrong_is_said(name, changes, words):
    found = about(**changes)
    assert [*found] == [name]
    assert words in found[name]


def test_nothing_is_said_of_few_steps_or_of_steps_without_practice():
    assert diagnose([HEALTHY | {"groups_with_signal": 0}] * (WINDOW - 1)) == {}
    assert diagnose([{"loss": 1.0}] * 50) == {}


def test_only_the_newest_steps_count():
    assert diagnose([HEALTHY | {"groups_with_signal": 0}] * 50 + [HEALTHY] * WINDOW) == {}
