"""Majority voting, unweighted or weighted by answer values (self-consistency, Wang et al. 2022, arXiv 2203.11171)."""

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
    """Return the index of the winning rollout, and each distinct answer with its count.

    The list of answers begins with the most frequent answer. If equal answers are written in different ways, the list
    contains the form that occurs first in `rollouts`. The weight of an answer is its value. An answer whose value is
    unknown has the weight 0. Without `values`, every weight is 1. The winning rollout is the rollout with the largest
    value among the rollouts with the winning answer. A missing answer wins only if all answers are missing. If several
    answers have the same total weight, the first of these answers wins. `normalize` converts an answer to the form in
    which equal answers are counted (`Task.normalized_answer`).
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
