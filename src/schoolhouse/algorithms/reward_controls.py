"""Negative controls: rewards from which nothing can be learned. A metric that rises under them is a fault.

Random rewards raised a benchmark once without teaching anything (Shao et al. 2025, arXiv 2506.10947).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from schoolhouse.algorithms.groups import with_rewards
from schoolhouse.randomness import python_random
from schoolhouse.types import Group, Key

RewardControl = Literal["none", "random", "shuffled", "flipped"]
"""`random`: a coin for every rollout; `shuffled`: the rewards of the step dealt to other rollouts, of any problem;
`flipped`: 1 - reward."""


def apply_reward_control(control: RewardControl, groups: Sequence[Group], seed: int, step: int) -> list[Group]:
    """The groups with their rewards replaced.

    Ungraded rollouts get a coin too under `random`; `shuffled` deals a missing reward like any other.
    """
    rewards = [verdict.reward for group in groups for verdict in group.verdicts]
    match control:
        case "none":
            return list(groups)
        case "random":
            coin = python_random(Key(seed, "random rewards", step))
            return with_rewards(groups, [float(coin.random() < 0.5) for _ in rewards])
        case "shuffled":
            python_random(Key(seed, "shuffled rewards", step)).shuffle(rewards)
            return with_rewards(groups, rewards)
        case "flipped":
            return with_rewards(groups, [None if reward is None else 1.0 - reward for reward in rewards])
