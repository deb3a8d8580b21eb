"""Is it the policy gradient? On a task small enough to enumerate (claims/harness/gradient_check.py).

The mean of an estimator must lie within 3 standard errors of the exact gradient in each parameter. The means of
estimators that are known to be biased must not.
"""

import numpy as np
import pytest
from torch import Tensor

from schoolhouse.algorithms.losses import clipped_surrogate, importance_corrected, policy_gradient
from schoolhouse.algorithms.packing import constant, sequence_mean, sequence_sum
from schoolhouse.claims.harness.gradient_check import (
    COMPLETIONS,
    GROUP_SIZE,
    LOGIT_NOISE,
    LOGITS,
    MAX_TOKENS,
    exact_gradient,
    gradient_estimates,
    max_standard_errors,
    sample_groups,
    token_logprob,
)
from schoolhouse.types import Group


@pytest.fixture(scope="module")
def on_policy() -> list[Group]:
    return sample_groups(LOGITS, 1)


@pytest.fixture(scope="module")
def off_policy() -> list[Group]:
    """Drawn by a sampler whose logits are a little off, as with quantised weights or other kernels."""
    return sample_groups(LOGITS + LOGIT_NOISE, 2)


@pytest.fixture(scope="module")
def uncorrected(off_policy: list[Group]) -> Tensor:
    return gradient_estimates(off_policy, policy_gradient(), sequence_sum, baseline="none", scale="none")


def test_reinforce_is_the_policy_gradient(on_policy: list[Group]):
    estimates = gradient_estimates(on_policy, policy_gradient(), sequence_sum, baseline="none", scale="none")
    assert max_standard_errors(estimates, exact_gradient()) < 3


def test_rloo_is_the_policy_gradient(on_policy: list[Group]):
    loss_fn = clipped_surrogate(on_policy=True)
    estimates = gradient_estimates(on_policy, loss_fn, sequence_sum, baseline="leave_one_out", scale="none")
    assert max_standard_errors(estimates, exact_gradient()) < 3


def test_dr_grpo_is_the_policy_gradient_up_to_a_constant(on_policy: list[Group]):
    loss_fn = clipped_surrogate(on_policy=True)
    estimates = gradient_estimates(
        on_policy, loss_fn, lambda scope: constant(scope, MAX_TOKENS), baseline="mean", scale="none"
    )
    assert max_standard_errors(estimates * MAX_TOKENS, exact_gradient() * (GROUP_SIZE - 1) / GROUP_SIZE) < 3
    assert max_standard_errors(estimates * MAX_TOKENS, exact_gradient()) > 3


def test_dividing_by_the_deviation_is_biased(on_policy: list[Group]):
    """GRPO's scale is no constant, so no multiple of the exact gradient fits."""
    loss_fn = clipped_surrogate(on_policy=True)
    estimates = gradient_estimates(on_policy, loss_fn, sequence_sum, baseline="mean", scale="group_std")
    truth = exact_gradient()
    multiple = estimates.mean(0) @ truth / (truth @ truth)
    assert max_standard_errors(estimates, multiple * truth) > 5


def test_dividing_by_the_length_is_biased(on_policy: list[Group]):
    loss_fn = clipped_surrogate(on_policy=True)
    estimates = gradient_estimates(on_policy, loss_fn, sequence_mean, baseline="leave_one_out", scale="none")
    truth = exact_gradient()
    multiple = estimates.mean(0) @ truth / (truth @ truth)
    assert max_standard_errors(estimates, multiple * truth) > 5


def test_another_sampler_without_correction_is_biased(uncorrected: Tensor):
    assert max_standard_errors(uncorrected, exact_gradient()) > 5


def test_another_sampler_with_sequence_importance_weights_is_the_policy_gradient(off_policy: list[Group]):
    loss_fn = importance_corrected(policy_gradient(), level="product", on_policy=True)
    estimates = gradient_estimates(off_policy, loss_fn, sequence_sum, baseline="none", scale="none")
    assert max_standard_errors(estimates, exact_gradient()) < 3


def test_token_importance_weights_are_less_biased_than_none(off_policy: list[Group], uncorrected: Tensor):
    loss_fn = importance_corrected(policy_gradient(), level="token", on_policy=True)
    estimates = gradient_estimates(off_policy, loss_fn, sequence_sum, baseline="none", scale="none")
    truth = exact_gradient()
    assert (estimates.mean(0) - truth).norm() < 0.95 * (uncorrected.mean(0) - truth).norm()


def test_the_enumeration_covers_every_completion():
    chances = np.array([float(token_logprob(LOGITS, completion).sum().exp()) for completion in COMPLETIONS])
    assert len(COMPLETIONS) == 40
    assert chances.sum() == pytest.approx(1.0)
