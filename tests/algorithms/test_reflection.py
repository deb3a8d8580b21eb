"""Reflection is found by words and by structure, apart for correct and incorrect answers."""

import pytest

from schoolhouse.algorithms.reflection import rechecks, reflection_stats, reflects
from schoolhouse.types import Completion
from tiny_groups import group


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
def test_reflection_is_found_by_whole_words(thought: str, expected: bool):
    assert reflects(thought) is expected


@pytest.mark.parametrize(
    ("thought", "expected"), [("7+5=11 no 7+5=12", True), ("7+5=12 2+1=3", False), ("", False), ("a=b a = c", False)]
)
def test_a_recheck_is_the_same_left_side_twice(thought: str, expected: bool):
    assert rechecks(thought) is expected


def test_correct_and_incorrect_answers_are_counted_apart_and_ungraded_ones_left_out():
    completions = [
        Completion("1+1=2 check 1+1=2", "2"),
        Completion("no", "3"),
        Completion("wait", "4"),
        Completion(None, "5"),
    ]
    assert reflection_stats([group(1.0, 0.0, None, 0.0)], completions) == {
        "completion_tokens_correct": 1.0,
        "completion_tokens_incorrect": 3.0,
        "reflection_rate_correct": 1.0,
        "reflection_rate_incorrect": 0.5,
        "recheck_rate_correct": 1.0,
        "recheck_rate_incorrect": 0.0,
    }
