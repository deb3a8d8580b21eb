"""Duels: known strengths are found again, ties say nothing, intervals shrink."""

import math

import pytest

from schoolhouse.eval.arena import Battle, bradley_terry, leaderboard
from schoolhouse.randomness import python_random
from schoolhouse.types import Key


def fought(strength: dict[str, float], count: int) -> list[Battle]:
    random, names, duels = python_random(Key(0, "duels")), list(strength), []
    for _ in range(count):
        left, right = random.sample(names, 2)
        odds = 10 ** ((strength[left] - strength[right]) / 400)
        duels.append(Battle(left, right, "left" if random.random() < odds / (1 + odds) else "right"))
    return duels


def test_two_models_differ_by_the_logarithm_of_their_odds():
    """9 of 12 and an imagined tie: 9.5 to 3.5."""
    duels = [Battle("a", "b", "left")] * 9 + [Battle("b", "a", "left")] * 3
    found = bradley_terry(duels, ["a", "b"])
    assert found["a"] - found["b"] == pytest.approx(400 * math.log10(9.5 / 3.5), abs=0.1)
    assert (found["a"] + found["b"]) / 2 == pytest.approx(1000)


def test_known_strengths_are_found_again():
    true = {"weak": 850.0, "middle": 1000.0, "strong": 1150.0}
    board = leaderboard(fought(true, 3000))
    assert [one.name for one in board] == ["strong", "middle", "weak"]
    assert [one.rating for one in board] == pytest.approx([1150, 1000, 850], abs=30)
    assert all(one.low < true[one.name] < one.high for one in board)


def test_intervals_shrink_with_duels():
    few, many = (leaderboard(fought({"a": 950.0, "b": 1050.0}, n))[0] for n in (40, 1000))
    assert many.high - many.low < (few.high - few.low) / 2


def test_who_never_lost_is_not_infinitely_strong():
    board = leaderboard([Battle("a", "b", "left")] * 5)
    assert board[0].name == "a"
    assert board[0].rating < 1300


def test_ties_and_duels_with_oneself_say_nothing():
    board = leaderboard([Battle("a", "b", "tie")] * 4 + [Battle("a", "a", "left")])
    assert [one.rating for one in board] == pytest.approx([1000.0, 1000.0])
    assert [one.num_battles for one in board] == [4, 4]
    assert leaderboard([]) == []


def test_a_model_of_few_duels_has_no_bound_at_the_middle():
    """Draws without any duel of it say nothing about it."""
    duels = [Battle("a", "b", "left"), Battle("a", "b", "right")] * 6 + [Battle("c", "a", "left")] * 2
    lonely = next(one for one in leaderboard(duels) if one.name == "c")
    assert lonely.low > 1000.0
