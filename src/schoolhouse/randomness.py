"""Every random number of the package, keyed by (seed, purpose, step, problem, sample, turn).

Nothing here has state: the n-th draw of a key is a pure function of the key and n. So a killed run resumes with the
same numbers, and the draws of one rollout do not depend on the other rollouts of its batch.
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
    """A numpy generator for a key, for bulk draws."""
    return np.random.Generator(np.random.PCG64(digest(key)))


def uniforms(digests: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) for each (key digest, counter): [S] uint64, [S] integers -> [S].

    SplitMix64 (Steele, Lea and Flood 2014) of the pair: counter-based, so a sampler draws for many keys at once
    while each key keeps its own stream.
    """
    with np.errstate(over="ignore"):
        z = digests.astype(np.uint64) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
