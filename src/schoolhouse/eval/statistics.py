"""Estimates and how sure they are. P problems, n samples of a problem, c right ones among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schoolhouse.randomness import numpy_random
from schoolhouse.types import Key

_Z = 1.959964  # two-sided 95 %
_DRAWS, _AT_ONCE = 2000, 100


class Estimate(NamedTuple):
    """A number and its 95 % interval. All nan where there was nothing to estimate from."""

    value: float
    low: float
    high: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n samples with c right; unbiased.

    1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples with {c} right: needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Accuracy of the most frequent answer among k: Wang et al. 2022, arXiv 2203.11171.

    answers  in a normal form: equal ones are one class; None: no answer could be read, a class that never wins
    Ties are broken by a fair lot: the mean accuracy of the tied answers. So the order of the samples does not count.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most]
    credit = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    return sum(credit[answer] / most for answer in tied) / len(tied)


def bootstrap(values: Sequence[float], key: Key, weights: Sequence[float] | None = None) -> Estimate:
    """Weighted mean over problems with its percentile bootstrap interval: problems are drawn anew, 2000 times.

    values   [P] one number per problem; a problem of weight 0 may have any
    weights  [P] for a mean over samples or tokens: how many of them stand behind each value (else 1 each)
    """
    weight_P = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    value_P = np.where(weight_P > 0, np.asarray(values, dtype=np.float64), 0.0)
    if not weight_P.sum() > 0:
        return NOTHING
    drawn = _resampled(np.stack([value_P * weight_P, weight_P]), key)
    means = drawn[0][drawn[1] > 0] / drawn[1][drawn[1] > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float((value_P * weight_P).sum() / weight_P.sum()), float(low), float(high))


def bootstrap_share(values: Sequence[float], key: Key, weights: Sequence[float] | None = None) -> Estimate:
    """`bootstrap` for numbers between 0 and 1. Where all are 0 or all are 1 there is nothing to draw from, which is no
    certainty: then the interval is Wilson's for that many problems."""
    estimate = bootstrap(values, key, weights)
    if estimate.value in (0.0, 1.0):
        problems = len(values) if weights is None else sum(weight > 0 for weight in weights)
        return wilson(round(estimate.value * problems), problems)
    return estimate


def paired_difference(before: Mapping[str, float], after: Mapping[str, float], key: Key) -> Estimate:
    """Mean of after - before over the same problems (problem id -> number), with its bootstrap interval.

    Pairing takes out how hard each problem is. Raises ValueError where the problems are not the same.
    """
    if before.keys() != after.keys():
        apart = sorted(before.keys() ^ after.keys())
        raise ValueError(f"not the same problems: {len(apart)} are in one of the two only, such as {apart[:3]}")
    return bootstrap([after[problem] - before[problem] for problem in sorted(before)], key)


def wilson(c: int, n: int) -> Estimate:
    """Share c / n of independent trials with the score interval of Wilson 1927."""
    if n == 0:
        return NOTHING
    share, z2 = c / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, middle - half if c else 0.0, middle + half if c < n else 1.0)


def _resampled(rows: np.ndarray, key: Key) -> np.ndarray:
    """Sums of rows [R, P] over problems drawn with replacement: [R, draws]."""
    random, problems = numpy_random(key), rows.shape[1]
    parts = []
    for _ in range(_DRAWS // _AT_ONCE):  # in pieces: memory
        counts = random.multinomial(problems, np.full(problems, 1 / problems), size=_AT_ONCE)
        parts.append(rows @ counts.T)
    return np.concatenate(parts, axis=1)
