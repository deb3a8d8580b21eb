"""Choosing a strategy by difficulty, on numbers worked out by hand."""

from schoolhouse.claims.compute_optimal import accuracy_by_difficulty

PREDICTED_ACCURACY = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]


def test_each_difficulty_gets_the_strategy_that_suits_it():
    correct = {"beam": [1.0] * 4 + [0.0] * 4, "vote": [0.0] * 4 + [1.0] * 4}
    assert accuracy_by_difficulty(PREDICTED_ACCURACY, correct, bins=2) == (1.0, 0.5)


def test_a_choice_on_one_half_is_tested_on_the_other():
    """Even problems need `a`, odd ones `b`: a choice on either half is wrong on the other."""
    correct = {"a": [1.0, 0.0] * 4, "b": [0.0, 1.0] * 4}
    assert accuracy_by_difficulty(PREDICTED_ACCURACY, correct, bins=2) == (0.0, 1.0)


def test_a_single_strategy_is_always_chosen():
    correct = {"vote": [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]}
    assert accuracy_by_difficulty(PREDICTED_ACCURACY, correct, bins=2) == (0.5, 0.5)
