"""This module makes all random numbers of the package from keys (seed, purpose, step, problem, sample, turn).

The functions in this module have no state. The n-th random number of a key depends only on the key and on n. So a
resumed run gets the same random numbers, and the random numbers of a rollout do not depend on other rollouts in its
batch.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

from schoolhouse.types import Key


def digest(key: Key) -> int:
    """Return a 64-bit hash of a key. The hash is the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def python_random(key: Key) -> random.Random:
    """Return a `random.Random` generator for a key.

    Use the returned generator to shuffle and to draw a few random numbers.
    """
    return random.Random(digest(key))


def numpy_random(key: Key) -> np.random.Generator:
    """Return a numpy generator for a key. Use the returned generator to draw many random numbers in one call."""
    return np.random.Generator(np.random.PCG64(digest(key)))


def uniforms(digests: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Return a random float64 in [0, 1) for each pair of a key digest (the hash of a key) and a counter.

    Both arguments and the result have shape [S]. The hash function SplitMix64 (Steele, Lea and Flood 2014) computes
    each random number from the key digest and the counter. So a sampler can compute random numbers for many keys in one
    call, and each key keeps its own stream of numbers.
    """
    with np.errstate(over="ignore"):
        z = digests.astype(np.uint64) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
