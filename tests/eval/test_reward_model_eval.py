"""Metrics of reward models, on numbers worked by hand."""

import math
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.eval.reward_model_eval import auc, best_of_n, first_error_f1, vote_of_n


def test_auc_counts_pairs():
    assert auc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert auc([0.1], [0.9]) == 0.0
    assert auc([0.5, 0.9], [0.5, 0.1]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert auc([0.5] * 3, [0.5] * 2) == 0.5
    assert math.isnan(auc([], [0.1]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_auc_is_the_share_of_pairs_in_order(correct: list[int], incorrect: list[int]):
    pairs = [(a > b) + 0.5 * (a == b) for a in correct for b in incorrect]
    assert auc(correct, incorrect) == pytest.approx(fmean(pairs))


def test_f1_needs_the_exact_step_and_no_false_alarm():
    assert first_error_f1([2, None], [2, None]) == 1.0
    assert first_error_f1([1, None], [2, None]) == 0.0
    assert first_error_f1([2, 0, None, 1], [2, 1, None, None]) == 0.5
    assert first_error_f1([2, 3, None], [2, 1, None]) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert math.isnan(first_error_f1([None], [None]))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_choices(answers: list[tuple[bool, int]], data: st.DataObject):
    n = data.draw(st.integers(1, len(answers)))
    accuracies = []
    for choice in combinations(answers, n):
        best = max(value for _, value in choice)
        accuracies.append(fmean(correct for correct, value in choice if value == best))
    correct, values = zip(*answers, strict=True)
    assert best_of_n(correct, values, n) == pytest.approx(fmean(accuracies))


def test_best_of_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="n is 3, but there are 2 answers"):
        best_of_n([True, False], [1.0, 0.0], 3)


def test_votes_are_counted_in_blocks_and_may_be_weighted():
    answers, correct = ["a", "b", "b", "a", None, "a"], [True, False, False, True, False, True]
    assert vote_of_n(answers, correct, 3) == 0.5
    assert vote_of_n(answers, correct, 3, [0.9, 0.1, 0.2, 0.1, 0.9, 0.1]) == 1.0
    assert vote_of_n(answers, correct, 2) == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert vote_of_n([None, None], [False, False], 2) == 0.0
