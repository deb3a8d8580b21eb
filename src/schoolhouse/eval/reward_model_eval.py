"""Measures how well a reward model separates right from wrong steps, finds first errors, and selects answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence


def auc(correct: Sequence[float], incorrect: Sequence[float]) -> float:
    """Compute the AUC: the probability that a correct item has a larger value than an incorrect item.

    A pair of items with equal values counts as one half. The result is nan if there are no correct items or no
    incorrect items.

    `correct`, `incorrect`: the values of the correct items, and the values of the incorrect items.
    """
    if not correct or not incorrect:
        return math.nan
    ranked = sorted([(value, True) for value in correct] + [(value, False) for value in incorrect])
    wins, num_incorrect_below, start = 0.0, 0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        tied = [is_correct for _, is_correct in ranked[start:end]]
        num_incorrect = len(tied) - sum(tied)
        wins += sum(tied) * (num_incorrect_below + num_incorrect / 2)
        num_incorrect_below += num_incorrect
        start = end
    return wins / (len(correct) * len(incorrect))


def first_error_f1(predicted: Sequence[int | None], actual: Sequence[int | None]) -> float:
    """Compute the F1 score of ProcessBench (Zheng et al. 2024, arXiv 2412.06559).

    For a solution with an error, a prediction is right if it gives the index of the first wrong step. For a solution
    without an error, a prediction is right if it is None. The F1 score is the harmonic mean of the accuracy on
    solutions with an error and the accuracy on solutions without an error. The F1 score is nan if all solutions have an
    error, or if no solution has an error.
    """
    accuracies = []
    for has_error in (True, False):
        pairs = [(a, b) for a, b in zip(predicted, actual, strict=True) if (b is not None) is has_error]
        if not pairs:
            return math.nan
        accuracies.append(sum(a == b for a, b in pairs) / len(pairs))
    return 2 * accuracies[0] * accuracies[1] / sum(accuracies) if sum(accuracies) else 0.0


def best_of_n(correct: Sequence[bool], values: Sequence[float], n: int) -> float:
    """Compute the accuracy of best-of-n, which selects the answer with the largest value among n answers.

    The result is the mean over all subsets of n answers. If several answers have the largest value, one of these
    answers is chosen at random. Raises ValueError if there are fewer than n answers.
    """
    total = len(correct)
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}, but there are {total} answers: set n to a number from 1 to the number of answers")
    correct_by_value: dict[float, list[bool]] = defaultdict(list)
    for is_correct, value in zip(correct, values, strict=True):
        correct_by_value[value].append(is_correct)
    expected, left, num_choices = 0.0, total, math.comb(total, n)
    for value in sorted(correct_by_value, reverse=True):
        tied = correct_by_value[value]
        # choices whose best value is this one: all choices from the answers left, minus those without this value
        share = (math.comb(left, n) - math.comb(left - len(tied), n)) / num_choices
        expected += share * sum(tied) / len(tied)
        left -= len(tied)
    return expected


def vote_of_n(
    answers: Sequence[Hashable | None], correct: Sequence[bool], n: int, weights: Sequence[float] | None = None
) -> float:
    """Compute the accuracy of a vote among n answers.

    Without weights, the most frequent answer wins. With weights, the answer with the largest total weight wins. The
    result is the mean over consecutive blocks of n answers. If several answers tie (the same count or weight), the
    result is their mean accuracy. A missing answer (None) has no vote.
    """
    accuracies = []
    for start in range(0, len(answers) - n + 1, n):
        totals: dict[Hashable, float] = defaultdict(float)
        is_correct: dict[Hashable, bool] = {}
        for at in range(start, start + n):
            answer = answers[at]
            if answer is not None:
                totals[answer] += 1.0 if weights is None else weights[at]
                is_correct[answer] = correct[at]
        best = max(totals.values(), default=0.0)
        tied = [is_correct[answer] for answer, total in totals.items() if total == best]
        accuracies.append(sum(tied) / len(tied) if tied else 0.0)
    return math.fsum(accuracies) / len(accuracies)
