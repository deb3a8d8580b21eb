"""Loss functions. A loss function maps (batch, scores) to one loss per token, [N].

The loss of an update is the sum of weight x loss over all tokens.

No loss in this file sums or averages over tokens. The weight of each token is already divided by the divisor of the
loss: the number of tokens, the number of sequences, or a constant (see packing.py). Outside the loss mask, the loss and
its gradient are exactly 0, even where a column is nan. A column is nan for tokens that were not sampled.

The losses distinguish three policies. The column "sampled" holds log-probabilities of the policy that sampled the
tokens, computed by the sampler. The column "old" holds log-probabilities of the policy before the update, computed by
the learner. The argument `scores` holds log-probabilities of the policy that is being updated.

In the formulas, N is the number of tokens of a batch, S the number of its sequences, pi the policy, and A the advantage
(column "advantage").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.algorithms.packing import Batch, Scores
from schoolhouse.types import SchoolError

Loss = Callable[[Batch, Scores], Tensor]
"""(batch, scores) -> loss of each token, [N]."""

ImportanceLevel = Literal["token", "sequence", "product"]
"""The level of one importance ratio. With `token`, each token has its own ratio. With `sequence`, the ratio is the
geometric mean of the token ratios (GSPO). With `product`, the ratio is the product of the token ratios, and the whole
sequence is one action. With `sequence` and `product`, all tokens of a sequence have the same loss and a gradient; use
`sequence_mean` weights, so that each sequence counts once."""

KLEstimator = Literal["k1", "k2", "k3"]

Divergence = Literal["tv", "kl"]
"""The distance between two policies at one token: total variation ("tv") or KL divergence ("kl"). The distance is
computed from the probability of the sampled token alone: all other tokens of the vocabulary count as one token."""

_MIN_REST = 1e-6  # the smallest probability of all tokens together that are no candidates: rounding can make it 0


def negative_log_likelihood() -> Loss:
    """The loss -log pi, which is used in pretraining, supervised fine-tuning and rejection sampling."""
    return lambda batch, scores: -_masked(batch, scores.logprob)


def token_bce() -> Loss:
    """Cross-entropy between the probability of a token and its target probability (column "target", 0 to 1).

    With probability p and target t, the loss is -t log p - (1 - t) log(1 - p). One token of the vocabulary means "yes",
    and this loss trains its probability to be the probability that a step is right. Process and outcome reward models
    use this loss (Lightman et al. 2023, arXiv 2305.20050). Wang et al. 2023 (arXiv 2312.08935) use soft labels as
    targets.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        logprob, target = _masked(batch, scores.logprob), _masked(batch, batch["target"])
        # The value is bounded, but the gradient is not: a reward model that is sure and wrong still gets a gradient.
        bounded = logprob + (logprob.clamp_max(-1e-6) - logprob).detach()
        no = torch.where(batch.loss_mask, -torch.expm1(bounded), torch.ones_like(logprob))
        return -target * logprob - (batch.loss_mask.float() - target) * no.log()

    return loss


def implicit_prm(beta: float) -> Loss:
    """The loss of an implicit process reward model (Yuan et al. 2024, arXiv 2412.01981).

    The loss is the cross-entropy between sigmoid(beta x sum of log(pi / pi_ref)) over a sequence and the outcome of the
    sequence (column "target"). This loss needs the column "reference". All tokens of a sequence have the same loss, so
    use `sequence_mean` weights.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        gain = _masked(batch, scores.logprob) - _masked(batch, batch["reference"])
        logit, target = beta * _sum_over_sequence(batch, gain), _masked(batch, batch["target"])
        return _masked(batch, F.binary_cross_entropy_with_logits(logit, target, reduction="none"))

    return loss


def policy_gradient() -> Loss:
    """The on-policy REINFORCE loss, -A log pi (Williams 1992).

    With `sequence_sum` weights, the gradient of this loss is the exact policy gradient.
    """
    return lambda batch, scores: -_masked(batch, batch["advantage"]) * _masked(batch, scores.logprob)


def clipped_surrogate(
    low: float = 0.2,
    high: float = 0.2,
    level: ImportanceLevel = "token",
    dual: float | None = None,
    on_policy: bool = False,
) -> Loss:
    """The clipped loss of PPO and GRPO, -min(rho A, clip(rho, 1 - low, 1 + high) A), where rho = pi / pi_old.

    The formula is equation 3 of GRPO (arXiv 2402.03300). Values with high > low give DAPO's clip-higher (arXiv
    2503.14476). The argument level="sequence" gives GSPO (Zheng et al. 2025, arXiv 2507.18071, eq. 7). The argument
    level="product" gives RLOO with a clip, as in TRL. If A < 0 and rho is large, `dual` > 1 limits the loss to dual |A|
    (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729).
    With on_policy=True, the present policy is used as pi_old, and the column "old" is not needed. For the first update
    on fresh rollouts, on_policy=True is exact: rho is 1, and the gradient is the REINFORCE gradient.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        advantage = _masked(batch, batch["advantage"])
        ratio = _log_ratio(batch, scores, level, on_policy).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        if dual is not None:
            surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual * advantage), surrogate)
        return -surrogate

    return loss


def cispo(high: float, on_policy: bool = False) -> Loss:
    """The CISPO loss, -stop_gradient(min(rho, 1 + high)) A log pi (MiniMax-M1, arXiv 2506.13585, eq. 4).

    The clipped ratio is a constant weight, so every token keeps a gradient. The upper limit of the ratio is 1 + high,
    as in the paper and in `clipped_surrogate`. In TRL, `epsilon_high` is the limit itself, so `epsilon_high` 5.0 in TRL
    is the same as `high` = 4.0 in this function.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        weight = _log_ratio(batch, scores, "token", on_policy).detach().exp().clamp(max=1 + high)
        return -weight * _masked(batch, batch["advantage"]) * _masked(batch, scores.logprob)

    return loss


def dppo(low: float = 0.15, high: float = 0.15, divergence: Divergence = "tv") -> Loss:
    """The DPPO loss, -M rho A, where rho = pi / pi_old (Qi et al. 2026, arXiv 2602.04879).

    The mask M is 0 for a token whose probability has already changed too much in the direction of its advantage. With A
    > 0, the token is masked if pi > pi_old and the divergence of pi and pi_old is above `high`. With A < 0, the token
    is masked if pi < pi_old and the divergence is above `low`. All other tokens have the mask M = 1.

    The divergence "tv" is |pi - pi_old|. The divergence "kl" is the KL divergence of the two distributions over "the
    sampled token" and "any other token". A limit on the ratio clips a rare token after an unimportant change of its
    probability, and allows large changes of likely tokens. A limit on the divergence treats rare and likely tokens in
    the same way. In the paper, pi_old (column "old") is the policy that sampled the tokens, and its probabilities come
    from the sampler.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        advantage = _masked(batch, batch["advantage"])
        too_far = _beyond_divergence(batch, scores, low, high, divergence)
        ratio = _log_ratio(batch, scores, "token", on_policy=False).exp()
        return -torch.where(too_far, 0.0, ratio * advantage)

    return loss


def _beyond_divergence(batch: Batch, scores: Scores, low: float, high: float, divergence: Divergence) -> Tensor:
    """Return True for each token that DPPO masks, bool [N]."""
    new, old = _masked(batch, scores.logprob.detach()), _masked(batch, batch["old"])
    if divergence == "tv":
        distance = (new.exp() - old.exp()).abs()
    else:
        tiny = torch.finfo(new.dtype).tiny
        other_new, other_old = ((-torch.expm1(x)).clamp_min(tiny) for x in (new, old))
        distance = old.exp() * (old - new) + other_old * (other_old / other_new).log()
    advantage = _masked(batch, batch["advantage"])
    risen, fallen = (advantage > 0) & (new > old), (advantage < 0) & (new < old)
    return (risen & (distance > high)) | (fallen & (distance > low))


def kl_penalty(estimator: KLEstimator = "k3", ratio: ImportanceLevel | None = None, on_policy: bool = False) -> Loss:
    """A loss that estimates KL(pi || reference) for each token, from samples of pi.

    This loss needs the column "reference". With d = log pi_ref - log pi, the estimators are k1 = -d, k2 = d^2/2 and
    k3 = e^d - d - 1 (Schulman 2020; GRPO uses k3). As *values* of the KL, the estimators k1 and k3 are unbiased. As
    *losses*, the three estimators have different mean gradients. The mean gradient of k1 is 0, so k1 has no effect as a
    loss. The mean gradient of k2 is the gradient of KL(pi || reference). The mean gradient of k3 is the gradient of
    KL(reference || pi); in gradient ascent, the coefficient of grad log pi is pi_ref/pi - 1.

    If `ratio` is given, the estimate is multiplied by rho = pi / pi_old, and rho has a gradient too. The column "old"
    gives pi_old; with on_policy=True, pi_old is the present policy, as in `clipped_surrogate`. With `ratio`, the mean
    gradient of k3 is the gradient of KL(pi || reference), also off-policy (DeepSeek-V3.2, arXiv 2512.02556). TRL also
    multiplies k3 by this ratio by default (`use_bias_correction_kl`).
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        d = _masked(batch, batch["reference"]) - _masked(batch, scores.logprob)
        kl = _estimate_kl(d, estimator)
        return kl if ratio is None else _log_ratio(batch, scores, ratio, on_policy).exp() * kl

    return loss


def add_penalty(loss_fn: Loss, coefficient: float, penalty: Loss) -> Loss:
    """Combine two losses: loss + coefficient x penalty."""
    return lambda batch, scores: loss_fn(batch, scores) + coefficient * penalty(batch, scores)


def importance_corrected(
    loss_fn: Loss,
    level: ImportanceLevel = "token",
    cap: float | None = None,
    on_policy: bool = False,
    mask: bool = False,
) -> Loss:
    """Correct a loss for samples that came from another policy than pi_old.

    The loss is multiplied by the constant weight min(pi_old / sampled, cap). The argument level="product" weights a
    whole sequence by the product of its ratios; the result is unbiased, but has high variance. The argument
    level="token" (truncated importance sampling) is biased, but has lower variance. With mask=True, a weight above the
    cap becomes 0. The corrected loss needs the column "sampled" and, if on_policy is False, the column "old".
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        old = scores.logprob.detach() if on_policy else batch["old"]
        log_weight = _at_level(batch, _masked(batch, old) - _masked(batch, batch["sampled"]), level)
        weight, upper = log_weight.exp(), float("inf") if cap is None else cap
        weight = torch.where(weight > upper, 0.0, weight) if mask else weight.clamp(max=upper)
        return weight * loss_fn(batch, scores)

    return loss


def score_centering(cap: float | None = None, mask: bool = False) -> Loss:
    """The penalty of score centering: A times the mean score under the sampler (Marek and Ryabinin 2026, 2609.20807).

    The score of a token v is the gradient of log pi(v). If sampler q and learner pi differ, the mean score under q,
    sum_v q(v) grad log pi(v), is not 0. At a prefix, the mean gradient of `policy_gradient` is then the covariance of
    the advantage and the score under q, plus the mean advantage times the mean score. The second part is called drift.
    It does not depend on which token is better, and it adds up over the updates, because the sampler follows the
    policy. `policy_gradient` plus this penalty has no drift. If q = pi, the penalty has no gradient.

    The batch has the K most likely tokens of the sampler (candidates). In the rest of the vocabulary, q is assumed to
    be proportional to pi, as in the paper (K = 128). With K = the size of the vocabulary, the mean is exact.

    Beside `importance_corrected(policy_gradient(), "token", cap, on_policy=True, mask)`, give the same `cap` and
    `mask`: the mean score is then weighted as the tokens are.

    Raises SchoolError if the batch has no candidates.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        if batch.candidates is None or scores.candidates is None:
            raise SchoolError(
                "score centering needs the candidates of the sampler, but the batch has none: sample with "
                "`policy.extend(..., num_candidates=128)`"
            )
        p_MK, q_MK = scores.candidates.detach().exp(), batch.candidates[1].exp()
        p_rest_M1, q_rest_M1 = ((1 - x.sum(-1, keepdim=True)).clamp_min(_MIN_REST) for x in (p_MK, q_MK))
        rest_M1 = q_rest_M1 / p_rest_M1  # q / pi of each token that is no candidate
        if cap is None:
            weighted_MK, weighted_rest_M1 = q_MK, rest_M1
        elif mask:
            weighted_MK, weighted_rest_M1 = torch.where(p_MK <= cap * q_MK, p_MK, 0.0), (cap * rest_M1 >= 1).float()
        else:
            weighted_MK, weighted_rest_M1 = torch.minimum(p_MK, cap * q_MK), (cap * rest_M1).clamp_max(1.0)
        # The mean score under pi is 0, so the scores of the rest are minus those of the candidates.
        coefficient_MK = weighted_MK - weighted_rest_M1 * p_MK
        mean_M = (coefficient_MK * torch.where(coefficient_MK == 0, 0.0, scores.candidates)).sum(-1)
        mean_N = torch.zeros_like(scores.logprob).index_put((batch.loss_mask.nonzero()[:, 0],), mean_M)
        return _masked(batch, batch["advantage"]) * mean_N

    return loss


def ratio_stats(
    batch: Batch,
    scores: Scores,
    low: float,
    high: float,
    level: ImportanceLevel = "token",
    divergence: Divergence | None = None,
) -> dict[str, float]:
    """Measure how much the policy differs from pi_old. The numbers are means over the trained tokens of this batch.

    The key `tokens` is the number of trained tokens; use it as the weight when you average over batches. The key
    `ratio` is the mean of pi / pi_old over tokens. The key `clip_frac_low` is the fraction of tokens without a gradient
    because their ratio (at `level`) is below the lower limit. The key `clip_frac_high` is the fraction of tokens
    without a gradient because their ratio is above the upper limit. The key `approx_kl` is KL(pi_old || pi), estimated
    by k3. The batch needs the columns "advantage" and "old". With `divergence`, the arguments `low` and `high` are the
    limits of `dppo`.
    """
    chosen = batch.weight > 0
    log_ratio = _log_ratio(batch, scores, "token", on_policy=False).detach()[chosen]
    ratio, advantage = log_ratio.exp(), batch["advantage"][chosen]
    if divergence:
        dropped = _beyond_divergence(batch, scores, low, high, divergence)[chosen]
    else:
        clipped = _log_ratio(batch, scores, level, on_policy=False).detach()[chosen].exp()
        dropped = ((clipped < 1 - low) & (advantage < 0)) | ((clipped > 1 + high) & (advantage > 0))
    return {
        "tokens": float(chosen.sum()),
        "ratio": float(ratio.mean()),
        "clip_frac_low": float((dropped & (advantage < 0)).float().mean()),
        "clip_frac_high": float((dropped & (advantage > 0)).float().mean()),
        "approx_kl": float((ratio - 1 - log_ratio).mean()),
    }


def _masked(batch: Batch, x_N: Tensor) -> Tensor:
    """Replace the values of x outside the loss mask by 0.

    Mask the inputs of a loss, not its result. After an exp, the gradient of a nan is nan, even if the result is masked.
    """
    return torch.where(batch.loss_mask, x_N, 0.0)


def _estimate_kl(d: Tensor, estimator: KLEstimator) -> Tensor:
    if estimator == "k1":
        return -d
    return d.square() / 2 if estimator == "k2" else d.exp() - d - 1


def _log_ratio(batch: Batch, scores: Scores, level: ImportanceLevel, on_policy: bool) -> Tensor:
    """For each token, return log(pi / pi_old) of the token or of its whole sequence, [N]."""
    logprob = _masked(batch, scores.logprob)
    old = logprob.detach() if on_policy else _masked(batch, batch["old"])
    return _at_level(batch, logprob - old, level)


def _at_level(batch: Batch, log_ratio: Tensor, level: ImportanceLevel) -> Tensor:
    """Convert the log-ratios of tokens [N] to a level.

    With "token", each token keeps its own log-ratio. With "sequence", each token gets the mean over its sequence. With
    "product", each token gets the sum over its sequence.
    """
    if level == "token":
        return log_ratio
    total = _sum_over_sequence(batch, log_ratio)
    if level == "product":
        return total
    return total / _sum_over_sequence(batch, batch.loss_mask.to(total.dtype)).clamp(min=1.0)


def _sum_over_sequence(batch: Batch, x_N: Tensor) -> Tensor:
    """Give each token the sum of x over its sequence; input and output have the shape [N]."""
    return x_N.new_zeros(len(batch.lengths)).index_add(0, batch.sequence, x_N)[batch.sequence]
