"""Who wins when two models answer the same and somebody chooses: strengths with intervals.

Bradley and Terry 1952: P(i beats j) = s_i / (s_i + s_j). A tie is half a win for each. Strengths are the most likely
ones, with one imagined tie between each pair that has met, so that who never lost is not infinitely strong; they are
told on Elo's scale, where 400 points are odds of ten to one, around a mean of 1000.
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
    """One comparison."""

    left: str
    right: str
    winner: Winner


class Standing(NamedTuple):
    """Strength of a model with its 95 % interval, and how many duels it is from."""

    name: str
    rating: float
    low: float
    high: float
    num_battles: int


def leaderboard(battles: Sequence[Battle], seed: int = 0) -> list[Standing]:
    """The strongest first. Intervals are from duels drawn again with replacement."""
    battles = [duel for duel in battles if duel.left != duel.right]
    names = sorted({name for duel in battles for name in (duel.left, duel.right)})
    found = bradley_terry(battles, names)
    random = python_random(Key(seed, "leaderboard"))
    drawn = []
    for _ in range(NUM_RESAMPLES if battles else 0):
        again = random.choices(battles, k=len(battles))
        present = {name for duel in again for name in (duel.left, duel.right)}
        drawn.append({name: one for name, one in bradley_terry(again, names).items() if name in present})
    met = Counter(name for duel in battles for name in (duel.left, duel.right))
    standings = []
    for name in names:
        spread = sorted(one[name] for one in drawn if name in one)
        low, high = spread[round(0.025 * (len(spread) - 1))], spread[round(0.975 * (len(spread) - 1))]
        standings.append(Standing(name, found[name], low, high, met[name]))
    return sorted(standings, key=lambda standing: -standing.rating)


def bradley_terry(battles: Sequence[Battle], names: Sequence[str]) -> dict[str, float]:
    """Strengths on Elo's scale, by minorisation and maximisation (Hunter 2004)."""
    wins, meetings = dict.fromkeys(names, 0.0), Counter[tuple[str, str]]()
    for left, right, winner in battles:
        share = {"left": 1.0, "right": 0.0, "tie": 0.5}[winner]
        wins[left] += share
        wins[right] += 1 - share
        meetings[min(left, right), max(left, right)] += 1
    for pair in list(meetings):
        meetings[pair] += 1
        for name in pair:
            wins[name] += 0.5
    strength = dict.fromkeys(names, 1.0)
    for _ in range(NUM_ITERATIONS):
        weight = dict.fromkeys(names, 0.0)
        for (a, b), count in meetings.items():
            for name in (a, b):
                weight[name] += count / (strength[a] + strength[b])
        strength = {name: wins[name] / weight[name] if weight[name] else 1.0 for name in names}
        mean = math.exp(sum(map(math.log, strength.values())) / max(1, len(names)))
        strength = {name: one / mean for name, one in strength.items()}
    return {name: MEAN + SCALE * math.log10(one) for name, one in strength.items()}
