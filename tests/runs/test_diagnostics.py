"""Advice appears when something keeps a run from learning, and only then."""

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


def advice_for(**changes):
    return diagnose([HEALTHY | changes] * WINDOW)


def test_a_healthy_run_gets_no_advice():
    assert advice_for() == {}


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("all_correct", {"all_correct": 6}, "all samples were correct for 60 % of the problems: raise the difficulty"),
        ("all_incorrect", {"all_incorrect": 8}, "all samples were incorrect for 80 % of the problems"),
        (
            "truncated",
            {"truncated": 40, "no_answer": 40},
            "50 % of the completions were cut off",
        ),
        ("no_answer", {"no_answer": 44}, "55 % of the completions have no answer"),
        ("ungraded", {"ungraded": 8}, "10 % of the completions could not be graded"),
        ("ungraded", {"ungraded": 80, "groups_ungraded": 10}, "no completion could be graded"),
        ("no_signal", {"groups_with_signal": 0}, "the weights do not change"),
        ("logprob_gap", {"logprob_gap": 0.05}, "differ by 0.050"),
    ],
)
@pytest.mark.fault("reward does not rise", "no gradient")
def test_each_problem_has_its_advice(name, changes, words):
    advice = advice_for(**changes)
    assert [*advice] == [name]
    assert words in advice[name]


def test_few_steps_and_supervised_steps_give_no_advice():
    assert diagnose([HEALTHY | {"groups_with_signal": 0}] * (WINDOW - 1)) == {}
    assert diagnose([{"loss": 1.0}] * 50) == {}


def test_only_the_newest_steps_count():
    assert diagnose([HEALTHY | {"groups_with_signal": 0}] * 50 + [HEALTHY] * WINDOW) == {}
