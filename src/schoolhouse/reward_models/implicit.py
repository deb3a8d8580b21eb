"""An implicit reward model gives process rewards, but is trained on outcomes of whole solutions, without step labels.

The method is from Yuan et al. 2024, arXiv 2412.01981. The reward of a solution y is a log-ratio of two likelihoods:
r(y) = beta log pi(y) / pi_ref(y). In the formula, pi is the reward model, and pi_ref is the model that the reward model
was trained from. The reward model is trained only on outcomes (losses.implicit_prm). The value of a solution up to a
step is the sum of the log-ratios of all tokens up to the end of the step. Therefore the reward model can give values to
steps that have no label.
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
    """Gives values to solutions and to parts of solutions, with two models.

    `policy`: the reward model.
    `reference`: the model that `policy` was trained from.
    """

    policy: Policy
    reference: Policy
    delimiter: str
    step_aggregation: StepAggregation = "last"

    def step_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Compute log sigma(beta log pi / pi_ref) for each complete step and for the whole turn.

        The ratio of a step includes all tokens of the turn up to the end of the step.
        """
        rollouts = [_as_sampled(rollout) for rollout in rollouts]
        scores, reference_scores = self.policy.score(rollouts), self.reference.score(rollouts)
        found = []
        for rollout, score, reference in zip(rollouts, scores, reference_scores, strict=True):
            log_ratios = np.where(rollout.loss_mask, score.logprob - reference.logprob, 0.0).tolist()
            summed = [0.0, *accumulate(log_ratios)]
            ends = graded_step_ends(self.policy.conversation, rollout, self.delimiter)
            found.append([-_softplus(-BETA * summed[end]) for end in ends])
        return found

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return one value from 0 to 1 for each rollout, or nan if the rollout has no complete step."""
        aggregate = STEP_AGGREGATIONS[self.step_aggregation]
        return [aggregate(logprobs) if logprobs else nan for logprobs in self.step_logprobs(rollouts)]


def _as_sampled(rollout: Rollout) -> Rollout:
    """Mark all tokens of a rollout's turn as sampled, so that prefilled thoughts count too."""
    if len(rollout.turns) != 1:
        return rollout  # between the turns there are tokens of the user
    start = rollout.turns[0]
    return replace(rollout, loss_mask=(*rollout.loss_mask[:start], *(True for _ in rollout.loss_mask[start:])))


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))
