"""Prompts with keys for random numbers: G rollouts for each of P problems, one group after the other."""

from __future__ import annotations

from collections.abc import Iterable

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Key, Problem, Rollout


def prompt_groups(
    conversation: Conversation,
    problems: Iterable[Problem],
    group_size: int,
    *,
    seed: int,
    purpose: str,
    step: int = 0,
    first_problem: int = 0,
) -> list[Rollout]:
    """The prompt of each problem `group_size` times, each with its own key. [P*G]

    purpose        part of the key: the purpose of these rollouts
    first_problem  number of the first problem in its step
    """
    return [
        conversation.prompt_rollout(problem, Key(seed, purpose, step, first_problem + i, g))
        for i, problem in enumerate(problems)
        for g in range(group_size)
    ]
