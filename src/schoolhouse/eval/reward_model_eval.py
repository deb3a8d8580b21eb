"""How good a judge is: does it tell right steps from wrong ones, find the first wrong one, pick a right answer?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence


def auc(correct: Sequence[float], incorrect: Sequence[float]) -> float:
    """How often what is right is graded above what is wrong; equal grades count half. nan where either is missing."""
    if not correct or not incorrect:
        return math.nan
    ranked = sorted([(grade, True) for grade in correct] + [(grade, False) for grade in incorrect])
    wins, below, at = 0.0, 0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        same = [is_right for _, is_right in ranked[at:end]]
        wins += sum(same) * (below + (len(same) - sum(same)) / 2)
        below += len(same) - sum(same)
        at = end
    return wins / (len(correct) * len(incorrect))


def first_error_f1(predicted: Sequence[int | None], actual: Sequence[int | None]) -> float:
    """ProcessBench (Zheng et al. 2024, arXiv 2412.06559): the first wrong step is said exactly, or that there is none.

    The harmonic mean of the shares on solutions with and without an error; nan where either kind is missing.
    """
    shares = []
    for wanted in (True, False):
        pairs = [(a, b) for a, b in zip(predicted, actual, strict=True) if (b is not None) is wanted]
        if not pairs:
            return math.nan
        shares.append(sum(a == b for a, b in pairs) / len(pairs))
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def best_of_n(correct: Sequence[bool], values: Sequence[float], n: int) -> float:
    """How often the one worth most of n answers is right: the mean over all choices of n among those given.

    Answers of the same worth are picked among by lot. Raises ValueError where there are fewer than n.
    """
    total = len(correct)
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}, there are {total} answers")
    groups: dict[float, list[bool]] = defaultdict(list)
    for is_right, one in zip(correct, values, strict=True):
        groups[one].append(is_right)
    expected, left, ways = 0.0, total, math.comb(total, n)
    for one in sorted(groups, reverse=True):
        same = groups[one]
        # choices whose best is of this worth: those among what is left, without those that take none of it
        share = (math.comb(left, n) - math.comb(left - len(same), n)) / ways
        expected += share * sum(same) / len(same)
        left -= len(same)
    return expected


def vote_of_n(
    answers: Sequence[Hashable | None], correct: Sequence[bool], n: int, weights: Sequence[float] | None = None
) -> float:
    """How often the most frequent of n answers is right, or that of the largest worth in all: a mean over blocks of n.

    Ties are broken by a fair lot. What holds no answer has no vote.
    """
    shares = []
    for start in range(0, len(answers) - n + 1, n):
        totals: dict[Hashable, float] = defaultdict(float)
        truth: dict[Hashable, bool] = {}
        for at in range(start, start + n):
            ballot = answers[at]
            if ballot is not None:
                totals[ballot] += 1.0 if weights is None else weights[at]
                truth[ballot] = correct[at]
        best = max(totals.values(), default=0.0)
        tied = [truth[ballot] for ballot, total in totals.items() if total == best]
        shares.append(sum(tied) / len(tied) if tied else 0.0)
    return math.fsum(shares) / len(shares)
