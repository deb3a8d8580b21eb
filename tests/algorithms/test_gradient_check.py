"""Is it the policy gradient? On a toy small enough to enumerate (claims/harness/toy.py): the mean of an estimator must
lie within 3 standard errors of the exact gradient, parameter by parameter, and those known to be biased must not.
"""

import numpy as np
import pytest
from torch import Tensor

from schoolhouse.algorithms.losses import clipped_surrogate, importance_corrected, policy_gradient
from schoolhouse.algorithms.packing import constant, sequence_mean, sequence_sum
from schoolhouse.claims.harness.gradient_check import (
    LONGEST,
    NOISE,
    REPLIES,
    TABLE,
    G,
    estimate,
    exact_gradient,
    furthest,
    sample,
    token_logprob,
)
from schoolhouse.types import Group


@pytest.fixture(scope="module")
def on_policy() -> list[Group]:
    return sample(TABLE, 1)


@pytest.fixture(scope="module")
def off_policy() -> list[Group]:
    """Drawn by a sampler whose logits are a little off: quantised weights, other kernels."""
    return sample(TABLE + NOISE, 2)


@pytest.fixture(scope="module")
def uncorrected(off_policy) -> Tensor:
    return estimate(off_policy, policy_gradient(), sequence_sum, baseline="none", scale="none")


def test_reinforce_is_the_policy_gradient(on_policy):
    estimates = estimate(on_policy, policy_gradient(), sequence_sum, baseline="none", scale="none")
    assert furthest(estimates, exact_gradient()) < 3


def test_rloo_is_the_policy_gradient(on_policy):
    objective = clipped_surrogate(on_policy=True)
    estimates = estimate(on_policy, objective, sequence_sum, baseline="leave_one_out", scale="none")
    assert furthest(estimates, exact_gradient()) < 3


def test_dr_grpo_is_the_policy_gradient_up_to_a_constant(on_policy):
    objective = clipped_surrogate(on_policy=True)
    estimates = estimate(on_policy, objective, lambda scope: constant(scope, LONGEST), baseline="mean", scale="none")
    assert furthest(estimates * LONGEST, exact_gradient() * (G - 1) / G) < 3
    assert furthest(estimates * LONGEST, exact_gradient()) > 3


def test_dividing_by_the_deviation_is_biased(on_policy):
    """GRPO's scale is no constant: no multiple of the exact gradient fits."""
    objective = clipped_surrogate(on_policy=True)
    estimates = estimate(on_policy, objective, sequence_sum, baseline="mean", scale="group_std")
    truth = exact_gradient()
    multiple = estimates.mean(0) @ truth / (truth @ truth)
    assert furthest(estimates, multiple * truth) > 5


def test_dividing_by_the_length_is_biased(on_policy):
    objective = clipped_surrogate(on_policy=True)
    estimates = estimate(on_policy, objective, sequence_mean, baseline="leave_one_out", scale="none")
    truth = exact_gradient()
    multiple = estimates.mean(0) @ truth / (truth @ truth)
    assert furthest(estimates, multiple * truth) > 5


def test_another_sampler_uncorrected_is_biased(uncorrected):
    assert furthest(uncorrected, exact_gradient()) > 5


def test_another_sampler_with_sequence_importance_is_the_policy_gradient(off_policy):
    objective = importance_corrected(policy_gradient(), level="product", on_policy=True)
    estimates = estimate(off_policy, objective, sequence_sum, baseline="none", scale="none")
    assert furthest(estimates, exact_gradient()) < 3


def test_token_importance_is_less_biased_than_none(off_policy, uncorrected):
    objective = importance_corrected(policy_gradient(), level="token", on_policy=True)
    estimates = estimate(off_policy, objective, sequence_sum, baseline="none", scale="none")
    truth = exact_gradient()
    assert (estimates.mean(0) - truth).norm() < 0.95 * (uncorrected.mean(0) - truth).norm()


def test_the_toy_covers_every_reply():
    chances = np.array([float(token_logprob(TABLE, reply).sum().exp()) for reply in REPLIES])
    assert len(REPLIES) == 40
    assert chances.sum() == pytest.approx(1.0)
