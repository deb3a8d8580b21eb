"""Negative controls: rewards from which the policy can learn nothing.

If a metric rises with the rewards of a negative control, the experiment has a fault. In a published case, random
rewards raised a benchmark result although they contain no information (Shao et al. 2025, arXiv 2506.10947).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from schoolhouse.algorithms.groups import with_rewards
from schoolhouse.randomness import python_random
from schoolhouse.types import Group, Key

RewardControl = Literal["none", "random", "shuffled", "flipped", "constant"]
"""With `random`, the reward of each rollout is 0 or 1 at random. With `shuffled`, the rewards of a step are shuffled
among all rollouts of all problems of the step. With `flipped`, the reward is 1 - reward. With `constant`, every reward
is 0, so the policy learns only from other rewards, such as the format reward."""


def apply_reward_control(control: RewardControl, groups: Sequence[Group], seed: int, step: int) -> list[Group]:
    """Return the groups with the rewards of a negative control.

    With `random`, ungraded rollouts also get a random reward. With `shuffled`, rewards are exchanged between rollouts,
    so a missing reward can move to another rollout.
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
        case "constant":
            return with_rewards(groups, [None if reward is None else 0.0 for reward in rewards])
