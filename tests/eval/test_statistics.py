"""Estimators against published numbers, exact enumeration and their own guarantees."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.eval.statistics import (
    bootstrap,
    bootstrap_share,
    maj_at_k,
    mean_over_seeds,
    paired_difference,
    pass_at_k,
    wilson,
)
from schoolhouse.types import Key

KEY = Key(0, "test")


@pytest.mark.parametrize("k, expected", [(1, 0.25), (2, 0.45), (4, 0.728), (8, 0.9615)])
def test_pass_at_k_gives_the_published_numbers(k: int, expected: float) -> None:
    assert pass_at_k(16, 4, k) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_correct_one(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    "answers, correct, expected",
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8"], [True, False], 0.5),  # a tie: the mean of both
        (["7", "8", "9"], [True, False, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),  # no answer never wins
        ([None, None], [False, False], 0.0),
    ],
)
def test_maj_at_k_counts_the_most_frequent_answer(answers: list, correct: list[bool], expected: float) -> None:
    assert maj_at_k(answers, correct) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1), st.randoms())
def test_maj_at_k_does_not_depend_on_the_order(answers: list, random) -> None:
    shuffled = random.sample(answers, len(answers))
    assert maj_at_k(answers, [a == "1" for a in answers]) == maj_at_k(shuffled, [a == "1" for a in shuffled])


def test_a_bootstrap_is_repeatable_and_another_key_gives_another_interval() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert bootstrap(values, KEY) == bootstrap(values, KEY)
    assert bootstrap(values, KEY) != bootstrap(values, Key(1, "test"))


def test_a_bootstrap_interval_is_that_of_the_normal_approximation_for_many_problems() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    estimate, half = bootstrap(values.tolist(), KEY), 1.96 * values.std() / math.sqrt(1000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_a_95_percent_interval_covers_the_truth_that_often() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        low, high = bootstrap(random.random(60).tolist(), Key(i, "test"))[1:]
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199  # 95 % of 200, give or take


def test_weights_make_a_mean_over_tokens_of_means_over_problems() -> None:
    assert bootstrap([1.0, 4.0], KEY, [3, 1]).value == pytest.approx(7 / 4)


def test_a_problem_of_weight_zero_does_not_count_whatever_its_value() -> None:
    assert bootstrap([1.0, math.nan], KEY, [2, 0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("values, weights", [([], None), ([1.0, 2.0], [0, 0])])
def test_nothing_to_estimate_from_is_nan_and_not_zero(values: list[float], weights: list[int] | None) -> None:
    assert all(math.isnan(number) for number in bootstrap(values, KEY, weights))


def test_all_wrong_is_not_certain() -> None:
    assert bootstrap_share([0.0] * 100, KEY) == (0.0, 0.0, pytest.approx(0.03699, abs=1e-4))
    assert bootstrap_share([1.0] * 100, KEY) == (1.0, pytest.approx(1 - 0.03699, abs=1e-4), 1.0)


def test_wilson_gives_the_textbook_interval() -> None:
    assert wilson(8, 10) == (0.8, pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_pairing_removes_the_difficulty_of_the_problems() -> None:
    difficulty = np.random.default_rng(0).random(100)
    before = {str(i): float(d) * 0.8 for i, d in enumerate(difficulty)}
    after = {problem: share + 0.1 for problem, share in before.items()}
    gain = paired_difference(before, after, KEY)
    assert gain.low == pytest.approx(0.1)
    assert gain.high == pytest.approx(0.1)


def test_other_problems_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="'b'"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0}, KEY)


def test_the_interval_over_seeds_is_the_textbook_interval() -> None:
    estimate = mean_over_seeds([0.2, 0.3, 0.4])
    assert estimate == (
        pytest.approx(0.3),
        pytest.approx(0.3 - 0.24843, abs=1e-4),
        pytest.approx(0.3 + 0.24843, abs=1e-4),
    )


def test_one_seed_has_no_interval() -> None:
    value, low, high = mean_over_seeds([0.3])
    assert value == 0.3
    assert math.isnan(low)
    assert math.isnan(high)
