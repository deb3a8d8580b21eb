"""Voting: self-consistency (Wang et al. 2022, arXiv 2203.11171), plain or weighted by what answers are worth."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import isnan

from schoolhouse.data.chat import Conversation
from schoolhouse.tasks.answer_match import extract, normalized_answer
from schoolhouse.types import Rollout


def weighted_vote(
    conversation: Conversation, rollouts: Sequence[Rollout], values: Sequence[float] | None = None
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """The index of the winner, and how many answers there were of each kind (as first written), most frequent first.

    Every answer counts what it is worth (1 without `worth`, 0 where nobody can tell); of those that agree with the
    winner the one worth most is given. No answer never wins where there is any. Of equals the first wins.
    """
    weights = [1.0] * len(rollouts) if values is None else [0.0 if isnan(w) else w for w in values]
    replies = [conversation.parse_completion(rollout) for rollout in rollouts]
    ballots = [normalized_answer(reply) for reply in replies]
    totals: dict[Hashable, float] = {}
    for one, weight in zip(ballots, weights, strict=True):
        if one is not None:
            totals[one] = totals.get(one, 0.0) + weight
    best = max(totals, key=lambda one: totals[one], default=None)
    winner = max((i for i, one in enumerate(ballots) if one == best), key=lambda i: weights[i])
    votes = [(extract(replies[ballots.index(one)])[0] or "", ballots.count(one)) for one in totals]
    return winner, tuple(sorted(votes, key=lambda pair: -pair[1]))
