"""Ratings of models, with confidence intervals, from blind comparisons of two answers.

The model of Bradley and Terry (1952) gives each model i a strength s_i: P(i beats j) = s_i / (s_i + s_j). A tie counts
as half a win for each model. The strengths are maximum-likelihood estimates. For each pair of models that were
compared, one extra tie is added. Without the extra tie, a model that never lost would have an infinite strength.
Ratings are strengths on the Elo scale: a difference of 400 points means odds of ten to one, and the mean rating is
1000.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from schoolhouse.randomness import python_random
from schoolhouse.types import Key

Winner = Literal["left", "right", "tie"]
NUM_RESAMPLES, NUM_ITERATIONS, MEAN, SCALE = 200, 200, 1000.0, 400.0


class Battle(NamedTuple):
    """One comparison of the answers of two models."""

    left: str
    right: str
    winner: Winner


class Standing(NamedTuple):
    """The rating of a model with its 95 % confidence interval, and the number of the model's comparisons."""

    name: str
    rating: float
    low: float
    high: float
    num_battles: int


def leaderboard(battles: Sequence[Battle], seed: int = 0) -> list[Standing]:
    """Compute the ratings of all models, the strongest model first.

    The confidence intervals are bootstrap intervals: comparisons are drawn with replacement. Comparisons of a model
    with itself are left out.
    """
    battles = [battle for battle in battles if battle.left != battle.right]
    names = sorted(_names(battles))
    ratings = bradley_terry(battles, names)
    random = python_random(Key(seed, "leaderboard"))
    resampled_ratings: list[dict[str, float]] = []
    for _ in range(NUM_RESAMPLES if battles else 0):
        drawn = random.choices(battles, k=len(battles))
        present = _names(drawn)
        resampled_ratings.append({name: r for name, r in bradley_terry(drawn, names).items() if name in present})
    num_battles = Counter(name for battle in battles for name in (battle.left, battle.right))
    standings = []
    for name in names:
        spread = sorted(resampled[name] for resampled in resampled_ratings if name in resampled)
        low, high = spread[round(0.025 * (len(spread) - 1))], spread[round(0.975 * (len(spread) - 1))]
        standings.append(Standing(name, ratings[name], low, high, num_battles[name]))
    return sorted(standings, key=lambda standing: -standing.rating)


def bradley_terry(battles: Sequence[Battle], names: Sequence[str]) -> dict[str, float]:
    """Compute the ratings with the minorisation-maximisation algorithm (Hunter 2004)."""
    wins, meetings = dict.fromkeys(names, 0.0), Counter[tuple[str, str]]()
    for left, right, winner in battles:
        left_share = {"left": 1.0, "right": 0.0, "tie": 0.5}[winner]
        wins[left] += left_share
        wins[right] += 1 - left_share
        meetings[min(left, right), max(left, right)] += 1
    for pair in list(meetings):  # the extra tie
        meetings[pair] += 1
        for name in pair:
            wins[name] += 0.5
    strengths = dict.fromkeys(names, 1.0)
    for _ in range(NUM_ITERATIONS):
        weights = dict.fromkeys(names, 0.0)
        for (a, b), count in meetings.items():
            for name in (a, b):
                weights[name] += count / (strengths[a] + strengths[b])
        strengths = {name: wins[name] / weights[name] if weights[name] else 1.0 for name in names}
        mean = math.exp(sum(map(math.log, strengths.values())) / max(1, len(names)))
        strengths = {name: strength / mean for name, strength in strengths.items()}
    return {name: MEAN + SCALE * math.log10(strength) for name, strength in strengths.items()}


def _names(battles: Sequence[Battle]) -> set[str]:
    return {name for battle in battles for name in (battle.left, battle.right)}
