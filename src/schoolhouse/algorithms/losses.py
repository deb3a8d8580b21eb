"""Losses: (batch, scores) -> loss [N], one number per token. The learner sums weight x loss.

No loss in this file aggregates over tokens. The weights contain the divisor: tokens, sequences or a constant (see
packing.py). Loss and gradient are exactly 0 outside the loss mask, even if a column is nan there (columns are nan for
tokens that were not sampled).

The losses distinguish three policies: the policy that sampled (column "sampled", computed by the sampler), the policy
at the start of the update (column "old", computed by the learner), and the policy that is being updated (`scores`).

N tokens of a batch, S sequences of a batch. pi is the policy, A its advantage (column "advantage").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.algorithms.packing import Batch, Scores

Loss = Callable[[Batch, Scores], Tensor]
"""(batch, scores) -> loss of each token, [N]."""

ImportanceLevel = Literal["token", "sequence", "product"]
"""The level of one importance ratio. `token`: each token has its own ratio. `sequence`: the geometric mean of the token
ratios (GSPO). `product`: the product of the token ratios; the whole sequence is one action. With the last two, all
tokens of a sequence have the same loss and all get a gradient. Use `sequence_mean` weights: a sequence counts once."""

KLEstimator = Literal["k1", "k2", "k3"]


def negative_log_likelihood() -> Loss:
    """-log pi: pretraining, supervised fine-tuning, rejection sampling."""
    return lambda batch, scores: -_masked(batch, scores.logprob)


def token_bce() -> Loss:
    """Cross-entropy between the probability of a token and its target probability (column "target", 0 to 1).

    -t log p - (1 - t) log(1 - p). The probability of one token (which means "yes") learns the probability that the step
    is right. Process and outcome reward models use this loss (Lightman et al. 2023, arXiv 2305.20050; soft labels: Wang
    et al. 2023, arXiv 2312.08935).
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        logprob, target = _masked(batch, scores.logprob), _masked(batch, batch["target"])
        # The value is bounded, but the gradient is not: a reward model that is sure and wrong still gets a gradient.
        bounded = logprob + (logprob.clamp_max(-1e-6) - logprob).detach()
        no = torch.where(batch.loss_mask, -torch.expm1(bounded), torch.ones_like(logprob))
        return -target * logprob - (batch.loss_mask.float() - target) * no.log()

    return loss


def implicit_prm(beta: float) -> Loss:
    """Cross-entropy between sigma(beta sum log pi / pi_ref) of a whole sequence and its outcome (column "target").

    Implicit process rewards (Yuan et al. 2024, arXiv 2412.01981). This loss needs the column "reference". All tokens of
    a sequence have the same loss, so use `sequence_mean` weights.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        gain = _masked(batch, scores.logprob) - _masked(batch, batch["reference"])
        logit, target = beta * _sum_over_sequence(batch, gain), _masked(batch, batch["target"])
        return _masked(batch, F.binary_cross_entropy_with_logits(logit, target, reduction="none"))

    return loss


def policy_gradient() -> Loss:
    """-A log pi: REINFORCE (Williams 1992), on-policy. With `sequence_sum` weights: the exact policy gradient."""
    return lambda batch, scores: -_masked(batch, batch["advantage"]) * _masked(batch, scores.logprob)


def clipped_surrogate(
    low: float = 0.2,
    high: float = 0.2,
    level: ImportanceLevel = "token",
    dual: float | None = None,
    on_policy: bool = False,
) -> Loss:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old: PPO, GRPO (arXiv 2402.03300, eq. 3).

    high > low is DAPO's clip-higher (arXiv 2503.14476). level="sequence" is GSPO (Zheng et al. 2025, arXiv 2507.18071,
    eq. 7). level="product" is RLOO with a clip, as in TRL. `dual` > 1 limits the loss to dual |A| if A < 0 and rho
    is large (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729).
    on_policy=True uses the present policy as pi_old, and needs no column "old". This is exact for the first update on
    fresh rollouts: rho is 1, and the gradient is the REINFORCE gradient.
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
    """-sg[min(rho, 1 + high)] A log pi. The clipped ratio is a constant weight, so every token keeps a gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4). The upper limit of the ratio is 1 + high, as in the paper and in
    `clipped_surrogate`. TRL's epsilon_high is the limit itself: 5.0 in TRL is 4.0 here.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        weight = _log_ratio(batch, scores, "token", on_policy).detach().exp().clamp(max=1 + high)
        return -weight * _masked(batch, batch["advantage"]) * _masked(batch, scores.logprob)

    return loss


def kl_penalty(estimator: KLEstimator = "k3", ratio: ImportanceLevel | None = None, on_policy: bool = False) -> Loss:
    """Per-token estimate of KL(pi || reference) from samples of pi, as a loss. Needs the column "reference".

    With d = log pi_ref - log pi (Schulman 2020): k1 = -d, k2 = d^2/2, k3 = e^d - d - 1 (GRPO). As *values*, k1 and k3
    are unbiased. As *losses*, the mean gradients differ. k1: the mean gradient is 0, so this loss has no effect. k2:
    the gradient of KL(pi || reference). k3: the gradient of KL(reference || pi); in gradient ascent, the coefficient
    of grad log pi is pi_ref/pi - 1.

    `ratio` multiplies the estimate by rho = pi / pi_old, and rho has a gradient too. pi_old is the column "old" or,
    with on_policy, the present policy, as in `clipped_surrogate`. The mean gradient of k3 is then the gradient of
    KL(pi || reference), also off-policy (DeepSeek-V3.2, arXiv 2512.02556; TRL's default, use_bias_correction_kl).
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        d = _masked(batch, batch["reference"]) - _masked(batch, scores.logprob)
        kl = _estimate_kl(d, estimator)
        return kl if ratio is None else _log_ratio(batch, scores, ratio, on_policy).exp() * kl

    return loss


def add_penalty(loss_fn: Loss, coefficient: float, penalty: Loss) -> Loss:
    """loss + coefficient x penalty."""
    return lambda batch, scores: loss_fn(batch, scores) + coefficient * penalty(batch, scores)


def importance_corrected(
    loss_fn: Loss,
    level: ImportanceLevel = "token",
    cap: float | None = None,
    on_policy: bool = False,
    mask: bool = False,
) -> Loss:
    """The loss times sg[min(pi_old / sampled, cap)], for samples that came from another policy than pi_old.

    level="product" weights a whole sequence by the product of its ratios: unbiased, but with high variance. "token"
    (truncated importance sampling) is biased, but has lower variance. With mask=True a weight above the cap becomes 0.
    This loss needs the column "sampled" and, without on_policy, the column "old".
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        old = scores.logprob.detach() if on_policy else batch["old"]
        log_weight = _at_level(batch, _masked(batch, old) - _masked(batch, batch["sampled"]), level)
        weight, upper = log_weight.exp(), float("inf") if cap is None else cap
        weight = torch.where(weight > upper, 0.0, weight) if mask else weight.clamp(max=upper)
        return weight * loss_fn(batch, scores)

    return loss


def ratio_stats(
    batch: Batch, scores: Scores, low: float, high: float, level: ImportanceLevel = "token"
) -> dict[str, float]:
    """How far the policy has moved from pi_old: means over the trained tokens of this batch.

    `tokens` is the number of trained tokens; use this number as the weight when you average over batches. `ratio` is
    the mean ratio of a token. `clip_frac_low` and `clip_frac_high` are the fractions of tokens that have no gradient
    because the ratio at `level` was clipped on that side. `approx_kl` is KL(pi_old || pi) estimated by k3.
    This function needs the columns "advantage" and "old".
    """
    chosen = batch.weight > 0
    log_ratio = _log_ratio(batch, scores, "token", on_policy=False).detach()[chosen]
    ratio, advantage = log_ratio.exp(), batch["advantage"][chosen]
    clipped = _log_ratio(batch, scores, level, on_policy=False).detach()[chosen].exp()
    return {
        "tokens": float(chosen.sum()),
        "ratio": float(ratio.mean()),
        "clip_frac_low": float(((clipped < 1 - low) & (advantage < 0)).float().mean()),
        "clip_frac_high": float(((clipped > 1 + high) & (advantage > 0)).float().mean()),
        "approx_kl": float((ratio - 1 - log_ratio).mean()),
    }


def _masked(batch: Batch, x_N: Tensor) -> Tensor:
    """The values of x inside the loss mask, and 0 outside.

    Mask the inputs of a loss, not its result: after an exp, the gradient of a nan is nan, even if the result is masked.
    """
    return torch.where(batch.loss_mask, x_N, 0.0)


def _estimate_kl(d: Tensor, estimator: KLEstimator) -> Tensor:
    if estimator == "k1":
        return -d
    return d.square() / 2 if estimator == "k2" else d.exp() - d - 1


def _log_ratio(batch: Batch, scores: Scores, level: ImportanceLevel, on_policy: bool) -> Tensor:
    """log(pi / pi_old) of each token, or of the sequence of each token. [N]"""
    logprob = _masked(batch, scores.logprob)
    old = logprob.detach() if on_policy else _masked(batch, batch["old"])
    return _at_level(batch, logprob - old, level)


def _at_level(batch: Batch, log_ratio: Tensor, level: ImportanceLevel) -> Tensor:
    """Give each token its own log-ratio, or the mean ("sequence") or sum ("product") over its sequence. [N] -> [N]"""
    if level == "token":
        return log_ratio
    total = _sum_over_sequence(batch, log_ratio)
    if level == "product":
        return total
    return total / _sum_over_sequence(batch, batch.loss_mask.to(total.dtype)).clamp(min=1.0)


def _sum_over_sequence(batch: Batch, x_N: Tensor) -> Tensor:
    """Give each token the sum over its sequence. [N] -> [N]"""
    return x_N.new_zeros(len(batch.lengths)).index_add(0, batch.sequence, x_N)[batch.sequence]
