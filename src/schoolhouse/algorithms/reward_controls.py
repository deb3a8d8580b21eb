"""Negative controls: verdicts that teach nothing. What rises under them is a fault, not learning.

Random rewards raised a benchmark once without teaching anything (Shao et al. 2025, arXiv 2506.10947).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from schoolhouse.algorithms.groups import with_rewards
from schoolhouse.randomness import python_random
from schoolhouse.types import Group, Key

RewardControl = Literal["none", "random", "shuffled", "flipped"]
"""`random`: a coin for every verdict; `shuffled`: each verdict of the step given to somebody else's answer, whatever
the problem; `flipped`: right is wrong."""


def apply_reward_control(control: RewardControl, groups: Sequence[Group], seed: int, step: int) -> list[Group]:
    """The groups with their verdicts replaced. What could not be judged: a coin too under `random`; `shuffled` hands it
    on like any verdict."""
    scores = [verdict.reward for group in groups for verdict in group.verdicts]
    match control:
        case "none":
            return list(groups)
        case "random":
            coin = python_random(Key(seed, "random rewards", step))
            return with_rewards(groups, [float(coin.random() < 0.5) for _ in scores])
        case "shuffled":
            python_random(Key(seed, "shuffled rewards", step)).shuffle(scores)
            return with_rewards(groups, scores)
        case "flipped":
            return with_rewards(groups, [None if score is None else 1.0 - score for score in scores])
