"""Second thoughts are told by words and by structure, for right and wrong answers apart."""

import pytest

from schoolhouse.algorithms.reflection import rechecks, reflection_stats, reflects
from schoolhouse.types import NAN, Completion, Group, Key, Problem, Rollout, Verdict


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("7+5=12 check 5+7=12", True),
        ("Wait, that is wrong", True),
        ("7+5=11 no 7+5=12", True),
        ("7+5=12", False),
        ("know nothing", False),
    ],
)
def test_words(thought: str, expected: bool):
    assert reflects(thought) is expected


@pytest.mark.parametrize(
    ("thought", "expected"), [("7+5=11 no 7+5=12", True), ("7+5=12 2+1=3", False), ("", False), ("a=b a = c", False)]
)
def test_structure(thought: str, expected: bool):
    assert rechecks(thought) is expected


def test_right_and_wrong_are_told_apart_and_the_unjudged_are_left_out():
    problem = Problem("p", (), "1")
    rollouts = tuple(
        Rollout(problem, Key(0, "t", 0, 0, g), (1,) * (2 + g), (False, *(True for _ in range(1 + g))), (NAN,) * (2 + g))
        for g in range(4)
    )
    verdicts = (Verdict(1.0), Verdict(0.0), Verdict(None, "clock"), Verdict(0.0))
    replies = [
        Completion("1+1=2 check 1+1=2", "2"),
        Completion("no", "3"),
        Completion("wait", "4"),
        Completion(None, "5"),
    ]
    assert reflection_stats([Group(problem, rollouts, verdicts)], replies) == {
        "completion_tokens_correct": 1.0,
        "completion_tokens_incorrect": 3.0,
        "reflection_rate_correct": 1.0,
        "reflection_rate_incorrect": 0.5,
        "recheck_rate_correct": 1.0,
        "recheck_rate_incorrect": 0.0,
    }
