"""Ratings from battles: known ratings are recovered, ties do not separate models, intervals shrink."""

import math

import pytest

from schoolhouse.eval.arena import Battle, bradley_terry, leaderboard
from schoolhouse.randomness import python_random
from schoolhouse.types import Key


def simulate(ratings: dict[str, float], count: int) -> list[Battle]:
    random, names, battles = python_random(Key(0, "duels")), list(ratings), []
    for _ in range(count):
        left, right = random.sample(names, 2)
        odds = 10 ** ((ratings[left] - ratings[right]) / 400)
        battles.append(Battle(left, right, "left" if random.random() < odds / (1 + odds) else "right"))
    return battles


def test_two_models_differ_by_the_logarithm_of_their_odds():
    """9 of 12 and an imagined tie: 9.5 to 3.5."""
    battles = [Battle("a", "b", "left")] * 9 + [Battle("b", "a", "left")] * 3
    ratings = bradley_terry(battles, ["a", "b"])
    assert ratings["a"] - ratings["b"] == pytest.approx(400 * math.log10(9.5 / 3.5), abs=0.1)
    assert (ratings["a"] + ratings["b"]) / 2 == pytest.approx(1000)


def test_known_ratings_are_recovered():
    true = {"weak": 850.0, "middle": 1000.0, "strong": 1150.0}
    standings = leaderboard(simulate(true, 3000))
    assert [standing.name for standing in standings] == ["strong", "middle", "weak"]
    assert [standing.rating for standing in standings] == pytest.approx([1150, 1000, 850], abs=30)
    assert all(standing.low < true[standing.name] < standing.high for standing in standings)


def test_intervals_shrink_with_battles():
    few, many = (leaderboard(simulate({"a": 950.0, "b": 1050.0}, n))[0] for n in (40, 1000))
    assert many.high - many.low < (few.high - few.low) / 2


def test_a_model_without_a_loss_is_not_infinitely_strong():
    standings = leaderboard([Battle("a", "b", "left")] * 5)
    assert standings[0].name == "a"
    assert standings[0].rating < 1300


def test_ties_and_battles_of_a_model_with_itself_do_not_separate_models():
    standings = leaderboard([Battle("a", "b", "tie")] * 4 + [Battle("a", "a", "left")])
    assert [standing.rating for standing in standings] == pytest.approx([1000.0, 1000.0])
    assert [standing.num_battles for standing in standings] == [4, 4]
    assert leaderboard([]) == []


def test_a_model_of_few_battles_has_no_bound_at_the_middle():
    """Resamples without any of its battles do not count."""
    battles = [Battle("a", "b", "left"), Battle("a", "b", "right")] * 6 + [Battle("c", "a", "left")] * 2
    rare = next(standing for standing in leaderboard(battles) if standing.name == "c")
    assert rare.low > 1000.0
