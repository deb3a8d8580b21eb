"""Quality of a reward model: separating correct from wrong steps, finding the first error, selecting an answer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence


def auc(correct: Sequence[float], incorrect: Sequence[float]) -> float:
    """How often a correct item has a larger value than an incorrect item. Equal values count as one half.

    correct, incorrect  the values of both kinds of items; the result is nan if one of them is empty
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
    """The F1 of ProcessBench (Zheng et al. 2024, arXiv 2412.06559).

    A prediction is right if it names exactly the first wrong step, or says that there is no wrong step. The F1 is the
    harmonic mean of two accuracies: on solutions with an error and on solutions without one. The F1 is nan if one of
    these two kinds is missing.
    """
    accuracies = []
    for has_error in (True, False):
        pairs = [(a, b) for a, b in zip(predicted, actual, strict=True) if (b is not None) is has_error]
        if not pairs:
            return math.nan
        accuracies.append(sum(a == b for a, b in pairs) / len(pairs))
    return 2 * accuracies[0] * accuracies[1] / sum(accuracies) if sum(accuracies) else 0.0


def best_of_n(correct: Sequence[bool], values: Sequence[float], n: int) -> float:
    """How often best-of-n is correct: the answer with the largest value among n answers.

    The result is the mean over all choices of n answers from the given ones. Among answers of equal value the choice is
    random. Raises ValueError if there are fewer than n answers.
    """
    total = len(correct)
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}, there are {total} answers")
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
    """How often a vote of n answers is correct: the most frequent answer, or the one with the largest total weight.

    The result is the mean over consecutive blocks of n answers. A tie counts as the mean of the tied answers. A missing
    answer (None) has no vote.
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
