"""Create the prompts for G rollouts of each of P problems, group by group. Each prompt has a key for random numbers."""

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
    """Create `group_size` copies of the prompt of each problem, each copy with its own key.

    The result is a list of P x G rollouts.
    `purpose` is the purpose of the rollouts, which is a part of the key.
    `first_problem` is the number of the first problem within its step.
    """
    return [
        conversation.prompt_rollout(problem, Key(seed, purpose, step, first_problem + i, g))
        for i, problem in enumerate(problems)
        for g in range(group_size)
    ]
