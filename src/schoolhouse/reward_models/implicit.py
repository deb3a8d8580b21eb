"""Process rewards without labels of steps: what a model learns when its likelihoods are made to tell right from wrong.

Yuan et al. 2024, arXiv 2412.01981. A reward model is a language model, and the reward of a solution is how much
likelier it holds it than the model it was trained from: r(y) = beta log pi(y) / pi_ref(y). Trained on outcomes alone
(objectives.implicit), its sum up to a step is the worth of what has been said, so it grades steps that nobody labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, log1p, nan
from typing import TYPE_CHECKING

import numpy as np

from schoolhouse.data.steps import graded_step_ends
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS, StepAggregation
from schoolhouse.types import Rollout

if TYPE_CHECKING:
    from schoolhouse.policy.policy import Policy

BETA = 0.05
"""As in the paper."""


@dataclass(frozen=True)
class ImplicitRewardModel:
    """Grades solutions, and what there is of them so far, by two models.

    reference  the model that `policy` was trained from
    """

    policy: Policy
    reference: Policy
    delimiter: str
    step_aggregation: StepAggregation = "last"

    def step_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """log sigma(beta log pi / pi_ref) of all that is said up to the end of each complete step, and of the whole."""
        rollouts = [_all_said(rollout) for rollout in rollouts]
        ours, theirs = self.policy.score(rollouts), self.reference.score(rollouts)
        found = []
        for rollout, one, other in zip(rollouts, ours, theirs, strict=True):
            gains = np.where(rollout.loss_mask, one.logprob - other.logprob, 0.0).tolist()
            until = [0.0, *accumulate(gains)]
            ends = graded_step_ends(self.policy.conversation, rollout, self.delimiter)
            found.append([-_softplus(-BETA * until[end]) for end in ends])
        return found

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One number for each, 0 to 1; nan where there is nothing to judge."""
        aggregate = STEP_AGGREGATIONS[self.step_aggregation]
        return [aggregate(logs) if logs else nan for logs in self.step_logprobs(rollouts)]


def _all_said(rollout: Rollout) -> Rollout:
    """As if a solution had been said word by word: a thought that was proposed stands there without being sampled."""
    if len(rollout.turns) != 1:
        return rollout  # between turns others speak
    start = rollout.turns[0]
    return replace(rollout, loss_mask=(*rollout.loss_mask[:start], *(True for _ in rollout.loss_mask[start:])))


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))
