"""Second thoughts are told by words and by structure, for right and wrong answers apart."""

import pytest

from schoolhouse.reflection import account, reflects, reworks
from schoolhouse.types import NAN, Group, Key, Problem, Reply, Rollout, Verdict


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
    assert reworks(thought) is expected


def test_right_and_wrong_are_told_apart_and_the_unjudged_are_left_out():
    problem = Problem("p", (), "1")
    rollouts = tuple(
        Rollout(problem, Key(0, "t", 0, 0, g), (1,) * (2 + g), (False, *(True for _ in range(1 + g))), (NAN,) * (2 + g))
        for g in range(4)
    )
    verdicts = (Verdict(1.0), Verdict(0.0), Verdict(None, "clock"), Verdict(0.0))
    replies = [Reply("1+1=2 check 1+1=2", "2"), Reply("no", "3"), Reply("wait", "4"), Reply(None, "5")]
    assert account([Group(problem, rollouts, verdicts)], replies) == {
        "said_right": 1.0,
        "said_wrong": 3.0,
        "reflects_right": 1.0,
        "reflects_wrong": 0.5,
        "reworks_right": 1.0,
        "reworks_wrong": 0.0,
    }
