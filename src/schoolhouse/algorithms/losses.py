"""Losses: (batch, scores) -> loss [N], one number per token. The learner sums weight x loss.

Nothing here aggregates: whether tokens, sequences or a constant divide is in the weights (see packing.py). Loss and
gradient are exactly 0 outside the loss mask, whatever stands there (columns are nan where nothing was sampled).

Three policies, never conflated: the one that sampled (column "sampled", the sampler's arithmetic), the one at the start
of the update ("old", the learner's arithmetic), and the one being updated (`scores`).

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
"""What one importance ratio is about: a `token`; a `sequence`, by the geometric mean of its tokens' ratios (GSPO); or
the whole sequence as one action, by their `product`. The last two give each token of a sequence the same loss, with
gradient to all of them: weigh them by `sequence_mean`, so that a sequence counts once."""

KLEstimator = Literal["k1", "k2", "k3"]


def negative_log_likelihood() -> Loss:
    """-log pi: pretraining, supervised fine-tuning, rejection sampling."""
    return lambda batch, scores: -_masked(batch, scores.logprob)


def token_bce() -> Loss:
    """Cross-entropy between the probability of a token and what it should be (column "target", 0 to 1).

    -t log p - (1 - t) log(1 - p): one token that says yes, trained to be as likely as the step is right. Process and
    outcome reward models (Lightman et al. 2023, arXiv 2305.20050; soft labels: Wang et al. 2023, arXiv 2312.08935).
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        logprob, target = _masked(batch, scores.logprob), _masked(batch, batch["target"])
        # the value is bounded, the gradient is not: a reward model that is sure and wrong has to unlearn it
        bounded = logprob + (logprob.clamp_max(-1e-6) - logprob).detach()
        no = torch.where(batch.loss_mask, -torch.expm1(bounded), torch.ones_like(logprob))
        return -target * logprob - (batch.loss_mask.float() - target) * no.log()

    return loss


def implicit_prm(beta: float) -> Loss:
    """Cross-entropy between sigma(beta sum log pi / pi_ref) of a whole sequence and its outcome (column "target").

    Implicit process rewards (Yuan et al. 2024, arXiv 2412.01981). Needs the column "reference". Each token of a
    sequence has the same loss: weigh by `sequence_mean`.
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        gain = _masked(batch, scores.logprob) - _masked(batch, batch["reference"])
        logit, target = beta * _sum_over_sequence(batch, gain), _masked(batch, batch["target"])
        return _masked(batch, F.binary_cross_entropy_with_logits(logit, target, reduction="none"))

    return loss


def policy_gradient() -> Loss:
    """-A log pi: REINFORCE (Williams 1992). On-policy; with `sequence_sum` weights the exact policy gradient."""
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
    eq. 7), level="product" is RLOO with a clip, as in TRL. `dual` > 1 bounds the loss by dual |A| where A < 0 and rho
    is large (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729).
    on_policy=True takes the policy as it is for pi_old, which is exact for the first update on fresh rollouts (rho is
    1, the gradient that of REINFORCE) and needs no column "old".
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
    """-sg[min(rho, 1 + high)] A log pi: the clipped ratio is a constant weight, so no token is ever dropped.

    CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4). `high` counts from 1, as in the paper and for `clipped_surrogate`;
    TRL's epsilon_high is the cap itself (its 5.0 is 4.0 here).
    """

    def loss(batch: Batch, scores: Scores) -> Tensor:
        weight = _log_ratio(batch, scores, "token", on_policy).detach().exp().clamp(max=1 + high)
        return -weight * _masked(batch, batch["advantage"]) * _masked(batch, scores.logprob)

    return loss


def kl_penalty(estimator: KLEstimator = "k3", ratio: ImportanceLevel | None = None, on_policy: bool = False) -> Loss:
    """Per-token estimate of KL(pi || reference) from samples of pi, as a loss. Needs the column "reference".

    With d = log pi_ref - log pi (Schulman 2020): k1 = -d, k2 = d^2/2, k3 = e^d - d - 1 (GRPO). As *values* k1 and k3
    are unbiased. As *losses*, on average: k1 does nothing (its gradient has mean 0), k2 follows the gradient of
    KL(pi || reference), k3 that of KL(reference || pi), its coefficient on grad log pi in ascent being pi_ref/pi - 1.

    `ratio` multiplies by rho = pi / pi_old, gradient included, with "old" or on_policy as in `clipped_surrogate`: k3
    then follows the gradient of KL(pi || reference), off-policy too (DeepSeek-V3.2, arXiv 2512.02556; TRL's default,
    use_bias_correction_kl).
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
    """A loss whose samples came from another policy than pi_old: times sg[min(pi_old / sampled, cap)].

    level="product" weighs a whole sequence by the product of its ratios: unbiased, but of high variance. "token"
    (truncated importance sampling) is biased and tamer. With mask=True a weight above the cap becomes 0.
    Needs the columns "sampled" and, unless on_policy, "old".
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
    """How far an update has gone from pi_old, as means over the `tokens` trained tokens of this batch (to be averaged
    over batches by them): the ratio of a token, the shares of tokens whose gradient the clip of the ratio at `level`
    removed on either side, and KL(pi_old || pi) estimated by k3. Needs the columns "advantage" and "old"."""
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
    """0 outside the loss mask. Applied to inputs, not to the result: behind an exp the gradient of a nan is nan."""
    return torch.where(batch.loss_mask, x_N, 0.0)


def _estimate_kl(d: Tensor, estimator: KLEstimator) -> Tensor:
    if estimator == "k1":
        return -d
    return d.square() / 2 if estimator == "k2" else d.exp() - d - 1


def _log_ratio(batch: Batch, scores: Scores, level: ImportanceLevel, on_policy: bool) -> Tensor:
    """log(pi / pi_old), at each token or of its sequence. [N]"""
    logprob = _masked(batch, scores.logprob)
    old = logprob.detach() if on_policy else _masked(batch, batch["old"])
    return _at_level(batch, logprob - old, level)


def _at_level(batch: Batch, log_ratio: Tensor, level: ImportanceLevel) -> Tensor:
    """At each token its own log-ratio, or the mean ("sequence") or sum ("product") over its sequence. [N] -> [N]"""
    if level == "token":
        return log_ratio
    total = _sum_over_sequence(batch, log_ratio)
    if level == "product":
        return total
    return total / _sum_over_sequence(batch, batch.loss_mask.to(total.dtype)).clamp(min=1.0)


def _sum_over_sequence(batch: Batch, x_N: Tensor) -> Tensor:
    """Each token's place gets the sum over its sequence. [N] -> [N]"""
    return x_N.new_zeros(len(batch.lengths)).index_add(0, batch.sequence, x_N)[batch.sequence]
