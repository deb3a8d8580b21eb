"""Estimates and their uncertainty. There are P problems; a problem has n samples, and c of them are correct."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schoolhouse.randomness import numpy_random
from schoolhouse.types import Key

_Z = 1.959964  # two-sided 95 %
_NUM_RESAMPLES, _CHUNK = 2000, 100


class Estimate(NamedTuple):
    """A number and its 95 % interval. All three numbers are nan if there was no data."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is correct, from n samples with c correct.

    1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples with {c} correct: needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Accuracy of the most frequent answer among k: Wang et al. 2022, arXiv 2203.11171.

    answers  in a normal form, so that equal answers are one class; None: no answer, a class that never wins
    A tie counts as the mean accuracy of the tied answers, so the order of the samples does not matter.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most_votes = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most_votes]
    num_correct = Counter(answer for answer, is_correct in zip(answers, correct, strict=True) if is_correct)
    return sum(num_correct[answer] / most_votes for answer in tied) / len(tied)


def bootstrap(values: Sequence[float], key: Key, weights: Sequence[float] | None = None) -> Estimate:
    """Weighted mean over problems with its percentile bootstrap interval, from 2000 resamples of problems.

    values   [P] one number per problem; a number with weight 0 does not matter
    weights  [P] for a mean over samples or tokens: the number of samples or tokens of each value (default: 1 each)
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
    """`bootstrap` for numbers between 0 and 1.

    If all numbers are 0 or all are 1, the resamples do not differ. Then the interval is Wilson's for P problems.
    """
    estimate = bootstrap(values, key, weights)
    if estimate.value in (0.0, 1.0):
        problems = len(values) if weights is None else sum(weight > 0 for weight in weights)
        return wilson(round(estimate.value * problems), problems)
    return estimate


def paired_difference(before: Mapping[str, float], after: Mapping[str, float], key: Key) -> Estimate:
    """Mean of after - before over the same problems (problem id -> number), with its bootstrap interval.

    Pairing removes the effect of each problem's difficulty. Raises ValueError if the problems are not the same.
    """
    if before.keys() != after.keys():
        unpaired = sorted(before.keys() ^ after.keys())
        raise ValueError(f"not the same problems: {len(unpaired)} are in only one of the two, such as {unpaired[:3]}")
    return bootstrap([after[problem] - before[problem] for problem in sorted(before)], key)


def wilson(c: int, n: int) -> Estimate:
    """Share c / n of independent trials with the score interval of Wilson 1927."""
    if n == 0:
        return UNKNOWN
    share, z2 = c / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, middle - half if c else 0.0, middle + half if c < n else 1.0)


def _resample(rows: np.ndarray, key: Key) -> np.ndarray:
    """Sums [R, resamples] of the rows [R, P] over problems that are drawn with replacement."""
    random, num_problems = numpy_random(key), rows.shape[1]
    chunks = []
    for _ in range(_NUM_RESAMPLES // _CHUNK):  # in chunks, to bound memory
        counts = random.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=_CHUNK)
        chunks.append(rows @ counts.T)
    return np.concatenate(chunks, axis=1)
