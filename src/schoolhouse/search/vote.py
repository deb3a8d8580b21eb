"""Majority voting: self-consistency (Wang et al. 2022, arXiv 2203.11171), unweighted or weighted by answer values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import isnan

from schoolhouse.data.chat import Conversation
from schoolhouse.tasks.answers.extraction import extract_answer, normalized_answer
from schoolhouse.types import Completion, Rollout


def weighted_vote(
    conversation: Conversation,
    rollouts: Sequence[Rollout],
    values: Sequence[float] | None = None,
    normalize: Callable[[Completion], Hashable | None] = normalized_answer,
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """The index of the winner, and each distinct answer (as first written) with its count, most frequent first.

    normalize  the form in which answers are counted (`Task.normalized_answer`)
    The weight of an answer is its value: 1 without `values`, 0 if the value is unknown. The winner is the rollout with
    the largest value among those that have the winning answer. A missing answer wins only if all answers are missing.
    In a tie the first one wins.
    """
    weights = [1.0] * len(rollouts) if values is None else [0.0 if isnan(value) else value for value in values]
    completions = [conversation.parse_completion(rollout) for rollout in rollouts]
    answers = [normalize(completion) for completion in completions]
    totals: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    best = max(totals, key=lambda answer: totals[answer], default=None)
    winner = max((i for i, answer in enumerate(answers) if answer == best), key=lambda i: weights[i])
    votes = [(_shown(completions[answers.index(answer)]), answers.count(answer)) for answer in totals]
    return winner, tuple(sorted(votes, key=lambda vote: -vote[1]))


def _shown(completion: Completion) -> str:
    return extract_answer(completion)[0] or completion.answer.strip()
