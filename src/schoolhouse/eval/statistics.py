"""Estimates and their uncertainty.

In formulas, P is the number of problems, and n is the number of samples per problem.

In formulas, c is the number of correct samples of a problem.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schoolhouse.randomness import numpy_random
from schoolhouse.types import Key

_Z = 1.959964  # two-sided 95 %
_NUM_RESAMPLES, _CHUNK = 2000, 100
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom."""


class Estimate(NamedTuple):
    """An estimated number with its 95 % confidence interval.

    If there is no data, the number and both ends of its interval are nan.
    """

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate pass@k, the probability that at least one of k samples is correct.

    The estimate is computed from n samples, of which c are correct. The estimate is unbiased. The formula is 1 - C(n-c,
    k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1). Raises ValueError if c is not between 0 and n, or if k is
    not between 1 and n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, found k = {k}, n = {n} samples, c = {c} correct")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Compute maj@k, the accuracy of the most frequent answer among k samples (Wang et al. 2022, arXiv 2203.11171).

    If several answers are equally frequent, the result is their mean accuracy, so the order of the samples does not
    matter.

    `answers`: the answers in a normal form, so that equivalent answers are equal. None means that a sample has no
        answer, and a missing answer never wins.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most_votes = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most_votes]
    num_correct = Counter(answer for answer, is_correct in zip(answers, correct, strict=True) if is_correct)
    return sum(num_correct[answer] / most_votes for answer in tied) / len(tied)


def bootstrap(values: Sequence[float], key: Key, weights: Sequence[float] | None = None) -> Estimate:
    """Compute a weighted mean over problems with its percentile bootstrap interval.

    The interval is computed from 2000 resamples of the problems.

    `values`: one number per problem [P]. A number whose weight is 0 does not change the result.
    `weights`: the weight of each number [P]; by default every weight is 1. For a mean over samples or tokens, the
        weight is the number of samples or tokens of the problem.
    """
    weight_P = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    value_P = np.where(weight_P > 0, np.asarray(values, dtype=np.float64), 0.0)
    if not weight_P.sum() > 0:
        return UNKNOWN
    sums, total_weights = _resample(np.stack([value_P * weight_P, weight_P]), key)
    means = sums[total_weights > 0] / total_weights[total_weights > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float((value_P * weight_P).sum() / weight_P.sum()), float(low), float(high))


def bootstrap_share(values: Sequence[float], key: Key, weights: Sequence[float] | None = None) -> Estimate:
    """Call `bootstrap` for numbers between 0 and 1.

    If all numbers are 0 or all numbers are 1, bootstrap resamples do not differ, so the function returns the Wilson
    interval for P problems.
    """
    estimate = bootstrap(values, key, weights)
    if estimate.value in (0.0, 1.0):
        problems = len(values) if weights is None else sum(weight > 0 for weight in weights)
        return wilson(round(estimate.value * problems), problems)
    return estimate


def paired_difference(before: Mapping[str, float], after: Mapping[str, float], key: Key) -> Estimate:
    """Compute the mean of `after - before` over the same problems, with its bootstrap interval.

    `before` and `after` map a problem id to a number. Pairing removes the effect of each problem's difficulty. Raises
    ValueError if the two mappings do not have the same problems.
    """
    if before.keys() != after.keys():
        unpaired = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"the two evaluations do not have the same problems: {len(unpaired)} problems are in only one of them, for "
            f"example {unpaired[:3]}; evaluate both models on the same problems"
        )
    return bootstrap([after[problem] - before[problem] for problem in sorted(before)], key)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Compute the mean over 2 to 10 seeds, with the interval of Student's t.

    The interval covers the variation between seeds. For fewer than 2 values, both ends of the interval are nan. Raises
    ValueError for more than 10 values.
    """
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan)
    if len(values) > len(_STUDENT_T) + 1:
        raise ValueError(f"there are {len(values)} seeds: use at most {len(_STUDENT_T) + 1} (the table of Student's t)")
    mean = statistics.fmean(values)
    half = _STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def wilson(c: int, n: int) -> Estimate:
    """Estimate the fraction c / n of successes in n independent trials, with the score interval of Wilson 1927."""
    if n == 0:
        return UNKNOWN
    share, z2 = c / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, middle - half if c else 0.0, middle + half if c < n else 1.0)


def _resample(rows: np.ndarray, key: Key) -> np.ndarray:
    """Sum each row of `rows` [R, P] over P problems that are drawn with replacement.

    The result has the shape [R, number of resamples].
    """
    random, num_problems = numpy_random(key), rows.shape[1]
    chunks = []
    for _ in range(_NUM_RESAMPLES // _CHUNK):  # in chunks, to bound memory
        counts = random.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=_CHUNK)
        chunks.append(rows @ counts.T)
    return np.concatenate(chunks, axis=1)
