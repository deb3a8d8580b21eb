"""Is it the policy gradient? On a task small enough to enumerate (claims/harness/gradient_check.py).

The mean of an estimator must lie within 3 standard errors of the exact gradient in each parameter. The means of
estimators that are known to be biased must not.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from schoolhouse.algorithms.advantages import distillation_advantage, subtract_to_go
from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.algorithms.losses import (
    Loss,
    add_penalty,
    clipped_surrogate,
    importance_corrected,
    kl_penalty,
    policy_gradient,
    score_centering,
)
from schoolhouse.algorithms.packing import constant, sequence_mean, sequence_sum
from schoolhouse.claims.harness.gradient_check import (
    COMPLETIONS,
    END,
    GROUP_SIZE,
    LOGIT_NOISE,
    LOGITS,
    MAX_TOKENS,
    REWARDS,
    VOCAB_SIZE,
    exact_gradient,
    gradient_estimates,
    gradient_of_rows,
    max_standard_errors,
    sample_groups,
    token_logprob,
)
from schoolhouse.recipes.self_correction import score_loss
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


# --- score centering: the sampler is a little off, and its most likely tokens are known


@pytest.fixture(scope="module")
def with_all_candidates() -> list[Group]:
    return sample_groups(LOGITS + LOGIT_NOISE, 3, VOCAB_SIZE)


def centred(cap: float | None = None) -> Loss:
    base = policy_gradient() if cap is None else importance_corrected(policy_gradient(), "token", cap, on_policy=True)
    return add_penalty(base, 1.0, score_centering(cap))


def estimates_for(groups: list[Group], loss: Loss, advantages: Sequence[float]) -> Tensor:
    """Estimates with an advantage for each completion."""
    table = dict(zip(COMPLETIONS, advantages, strict=True))
    rows = [[table[rollout.tokens[1:]]] * len(rollout) for rollout in rollouts_of(groups)]
    return gradient_of_rows(groups, loss, sequence_sum, advantage=rows)


def exact_covariance(advantages: Sequence[float], cap: float | None) -> Tensor:
    """The sum over prefixes, under the sampler, of the covariance of the advantage and the weighted score [16]."""
    sampler, policy = (LOGITS + LOGIT_NOISE).softmax(-1), LOGITS.softmax(-1)
    weight = torch.ones_like(policy) if cap is None else (policy / sampler).clamp(max=cap)
    score = torch.eye(VOCAB_SIZE) - policy[:, None, :]  # [previous, token, logit]
    mean = ((sampler * weight)[:, :, None] * score).sum(1)
    total = torch.zeros(VOCAB_SIZE, VOCAB_SIZE, dtype=LOGITS.dtype)
    for completion, advantage in zip(COMPLETIONS, advantages, strict=True):
        chance = token_logprob(LOGITS + LOGIT_NOISE, completion).sum().exp()
        for previous, token in zip((END, *completion[:-1]), completion, strict=True):
            total[previous] += chance * advantage * (weight[previous, token] * score[previous, token] - mean[previous])
    return total.flatten()


@pytest.mark.parametrize("cap", [None, 1.1])
def test_equal_advantages_move_a_policy_with_another_sampler_unless_scores_are_centred(
    with_all_candidates: list[Group], cap: float | None
):
    """An advantage that is the same for every completion has no information, so the gradient should be 0."""
    same = [1.0] * len(COMPLETIONS)
    plain = policy_gradient() if cap is None else importance_corrected(policy_gradient(), "token", cap, on_policy=True)
    zero = torch.zeros(VOCAB_SIZE**2, dtype=LOGITS.dtype)
    assert max_standard_errors(estimates_for(with_all_candidates, plain, same), zero) > 5
    assert max_standard_errors(estimates_for(with_all_candidates, centred(cap), same), zero) < 3


@pytest.mark.parametrize("cap", [None, 1.1])
def test_the_gradient_with_centred_scores_is_the_covariance_of_advantage_and_score(
    with_all_candidates: list[Group], cap: float | None
):
    truth = exact_covariance(REWARDS, cap)
    assert max_standard_errors(estimates_for(with_all_candidates, centred(cap), REWARDS), truth) < 3
    assert max_standard_errors(estimates_for(with_all_candidates, centred(2.0 if cap else 1.1), REWARDS), truth) > 5


def test_centred_scores_are_closer_to_the_policy_gradient_than_plain_ones(
    with_all_candidates: list[Group],
):
    """With rewards far from 0 and no baseline, drift is most of the bias."""
    high, truth = [reward + 5.0 for reward in REWARDS], exact_gradient()
    plain, fixed = (estimates_for(with_all_candidates, loss, high).mean(0) for loss in (policy_gradient(), centred()))
    assert (fixed - truth).norm() < 0.2 * (plain - truth).norm()


def test_with_the_policy_itself_as_sampler_centred_scores_change_nothing():
    groups = sample_groups(LOGITS, 4, 2)[:5_000]
    plain, fixed = (estimates_for(groups, loss, REWARDS) for loss in (policy_gradient(), centred()))
    assert float((plain - fixed).abs().max()) < 1e-5 * float(plain.abs().max())


def test_two_candidates_of_four_tokens_remove_most_of_the_drift():
    groups, same = sample_groups(LOGITS + LOGIT_NOISE, 5, 2), [1.0] * len(COMPLETIONS)
    plain, fixed = (estimates_for(groups, loss, same).mean(0).norm() for loss in (policy_gradient(), centred()))
    assert fixed < 0.5 * plain


# --- KL penalties: the reference is a policy whose logits are a little off

REFERENCE = LOGITS + 3 * LOGIT_NOISE


def reference_rows(groups: Sequence[Group]) -> list[list[float]]:
    """The reference's log-probability of each token of each rollout."""
    table = {completion: [0.0, *token_logprob(REFERENCE, completion).tolist()] for completion in COMPLETIONS}
    return [table[rollout.tokens[1:]] for rollout in rollouts_of(groups)]


def exact_kl_gradient(forward: bool) -> Tensor:
    """Minus the gradient of the KL to the reference, summed over the tokens, for a constant distribution of prefixes.

    With `forward`, the KL is KL(reference || pi); otherwise it is KL(pi || reference).
    """
    logits = LOGITS.clone().requires_grad_()
    reached = torch.zeros(len(LOGITS), dtype=LOGITS.dtype)  # expected visits of each previous token
    for completion in COMPLETIONS:
        chance = token_logprob(LOGITS, completion).sum().exp()
        for previous in (END, *completion[:-1]):
            reached[previous] += chance
    p, q = logits.log_softmax(-1), REFERENCE.log_softmax(-1)
    kl = (q.exp() * (q - p)).sum(-1) if forward else (p.exp() * (p - q)).sum(-1)
    return -torch.autograd.grad((reached * kl).sum(), logits)[0].flatten()


def kl_estimates(groups: Sequence[Group], loss: Loss) -> Tensor:
    zeros = [[0.0] * len(rollout) for rollout in rollouts_of(groups)]
    ones = [[1.0] * len(rollout) for rollout in rollouts_of(groups)]
    return gradient_of_rows(groups, loss, sequence_sum, advantage=zeros, kl_coef=ones, reference=reference_rows(groups))


def test_the_penalty_of_score_has_the_gradient_of_kl_from_the_policy_to_the_reference(on_policy: list[Group]):
    """Kumar et al. 2024, equations 3 and 4: KL(pi || reference)."""
    estimates = kl_estimates(on_policy, score_loss())
    assert max_standard_errors(estimates, exact_kl_gradient(forward=False)) < 3
    assert max_standard_errors(estimates, exact_kl_gradient(forward=True)) > 5


def test_the_estimator_k3_has_the_gradient_of_the_other_direction(on_policy: list[Group]):
    estimates = kl_estimates(on_policy, kl_penalty("k3"))
    assert max_standard_errors(estimates, exact_kl_gradient(forward=True)) < 3
    assert max_standard_errors(estimates, exact_kl_gradient(forward=False)) > 5


def exact_penalised_gradient(kl_coef: float) -> Tensor:
    """The gradient of the expected reward minus `kl_coef` x KL(pi || reference) of whole completions."""
    logits = LOGITS.clone().requires_grad_()
    logprob = torch.stack([token_logprob(logits, completion).sum() for completion in COMPLETIONS])
    reference = torch.stack([token_logprob(REFERENCE, completion).sum() for completion in COMPLETIONS])
    value = (logprob.exp() * (torch.tensor(REWARDS) - kl_coef * (logprob - reference))).sum()
    return torch.autograd.grad(value, logits)[0].flatten()


def to_go_estimates(groups: Sequence[Group], kl_coef: float) -> Tensor:
    kl = [
        [0.0, *(kl_coef * (p - q) for p, q in zip(rollout.logprob[1:], row[1:], strict=True))]
        for rollout, row in zip(rollouts_of(groups), reference_rows(groups), strict=True)
    ]
    return gradient_of_rows(groups, policy_gradient(), sequence_sum, advantage=subtract_to_go(groups, kl))


def test_kl_to_go_is_the_gradient_of_reward_and_kl_of_whole_completions(on_policy: list[Group]):
    estimates = to_go_estimates(on_policy, 0.5)
    assert max_standard_errors(estimates, exact_penalised_gradient(0.5)) < 3
    assert max_standard_errors(estimates, exact_penalised_gradient(0.0)) > 5


# --- distillation: the reference is the teacher


def test_distillation_has_the_gradient_of_the_reverse_kl_at_each_token(on_policy: list[Group]):
    """KL(student || teacher), for the prefixes that the student writes."""
    advantage = distillation_advantage(rollouts_of(on_policy), reference_rows(on_policy))
    estimates = gradient_of_rows(on_policy, policy_gradient(), sequence_sum, advantage=advantage)
    assert max_standard_errors(estimates, exact_kl_gradient(forward=False)) < 3
    assert max_standard_errors(estimates, exact_kl_gradient(forward=True)) > 5


def test_the_enumeration_covers_every_completion():
    chances = np.array([float(token_logprob(LOGITS, completion).sum().exp()) for completion in COMPLETIONS])
    assert len(COMPLETIONS) == 40
    assert chances.sum() == pytest.approx(1.0)
