"""Choosing a strategy by difficulty, on numbers worked by hand."""

from schoolhouse.claims.compute_optimal import by_difficulty

EASE = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]


def test_each_difficulty_gets_the_strategy_that_suits_it():
    right = {"beam": [1.0] * 4 + [0.0] * 4, "vote": [0.0] * 4 + [1.0] * 4}
    assert by_difficulty(EASE, right, bins=2) == (1.0, 0.5)


def test_what_is_chosen_on_one_half_is_tested_on_the_other():
    """Even problems want `a`, odd ones `b`: whatever is learned on one half is wrong on the other."""
    right = {"a": [1.0, 0.0] * 4, "b": [0.0, 1.0] * 4}
    assert by_difficulty(EASE, right, bins=2) == (0.0, 1.0)


def test_one_strategy_is_all_there_is_to_choose():
    right = {"vote": [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]}
    assert by_difficulty(EASE, right, bins=2) == (0.5, 0.5)
