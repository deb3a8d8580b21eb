"""All random numbers of the package. Each number has a key: (seed, purpose, step, problem, sample, turn).

The functions here have no state: random number n of a key is a pure function of the key and n. So a resumed run gets
the same numbers, and the numbers of one rollout do not depend on the other rollouts of its batch.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

from schoolhouse.types import Key


def digest(key: Key) -> int:
    """A 64-bit number for a key, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def python_random(key: Key) -> random.Random:
    """A `random.Random` for a key: for shuffles, choices and small draws in plain Python."""
    return random.Random(digest(key))


def numpy_random(key: Key) -> np.random.Generator:
    """A numpy generator for a key: for many random numbers at once."""
    return np.random.Generator(np.random.PCG64(digest(key)))


def uniforms(digests: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) for each (key digest, counter): [S] uint64, [S] integers -> [S].

    The number is SplitMix64 (Steele, Lea and Flood 2014) of the pair. It depends only on key and counter, so a sampler
    can compute numbers for many keys at once, and each key keeps its own stream.
    """
    with np.errstate(over="ignore"):
        z = digests.astype(np.uint64) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
