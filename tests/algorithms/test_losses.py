"""Losses: truth tables, published numbers, and exactly 0 outside the loss mask."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from schoolhouse.algorithms.losses import (
    Divergence,
    ImportanceLevel,
    KLEstimator,
    Loss,
    add_penalty,
    cispo,
    clipped_surrogate,
    dppo,
    implicit_prm,
    importance_corrected,
    kl_penalty,
    negative_log_likelihood,
    policy_gradient,
    ratio_stats,
    score_centering,
    token_bce,
)
from schoolhouse.algorithms.packing import Batch, Scores, TokenWeight, pack, sequence_mean, sequence_sum
from schoolhouse.types import NAN, Key, Problem, Rollout, SchoolError

LOSSES = {
    "likelihood": negative_log_likelihood(),
    "policy_gradient": policy_gradient(),
    "grpo": clipped_surrogate(0.2, 0.2),
    "grpo on policy": clipped_surrogate(on_policy=True),
    "gspo": clipped_surrogate(3e-4, 4e-4, level="sequence"),
    "rloo": clipped_surrogate(level="product"),
    "dual": clipped_surrogate(dual=3.0),
    "cispo": cispo(4.0),
    "cispo on policy": cispo(4.0, on_policy=True),
    "dppo": dppo(),
    "dppo kl": dppo(0.05, 0.05, "kl"),
    "k1": kl_penalty("k1"),
    "k2": kl_penalty("k2"),
    "k3": kl_penalty("k3"),
    "k3 with ratio": kl_penalty("k3", ratio="token"),
    "token_bce": token_bce(),
    "implicit": implicit_prm(0.5),
    "sum": add_penalty(clipped_surrogate(), 0.04, kl_penalty()),
    "tis": importance_corrected(clipped_surrogate(), cap=2.0),
    "sequence is": importance_corrected(policy_gradient(), level="product", on_policy=True),
}


LEVELS: tuple[ImportanceLevel, ...] = ("token", "sequence")
Aggregation = Callable[[Sequence[Rollout]], TokenWeight]


def packed(*lengths: int, aggregation: Aggregation = sequence_mean, **values: list[float]) -> Batch:
    """Prompts of 2 tokens with completions of these lengths. Columns hold `values` in the loss mask, nan elsewhere."""
    rollouts = [
        Rollout(
            Problem("p", (), ""), Key(0, "t", 0, 0, i), (1,) * (2 + n), (False,) * 2 + (True,) * n, (NAN,) * (2 + n)
        )
        for i, n in enumerate(lengths)
    ]
    (batch,) = pack(rollouts, aggregation(rollouts))
    columns = {}
    for name, row in values.items():
        columns[name] = torch.full((len(batch.tokens),), NAN)
        columns[name][batch.loss_mask] = torch.tensor(row)
    return replace(batch, columns=columns)


def apply(loss_fn: Loss, batch: Batch, logprob: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and d(weight x loss) at every token, and the gradient in the loss mask divided by its weight."""
    logprob_N = torch.full((len(batch.tokens),), NAN)
    logprob_N[batch.loss_mask] = torch.tensor(logprob)
    logprob_N.requires_grad_()
    loss = loss_fn(batch, Scores(logprob_N, logprob_N.detach()))
    (gradient,) = torch.autograd.grad((batch.weight * loss).sum(), logprob_N)
    return loss.detach(), gradient, (gradient / batch.weight)[batch.loss_mask]


def at_ratio(loss_fn: Loss, advantage: float, ratio: float) -> tuple[float, float]:
    """Loss of a single token with pi/pi_old = ratio, and the coefficient of grad log pi in ascent."""
    batch = packed(1, advantage=[advantage], old=[-1.0])
    loss, _, gradient = apply(loss_fn, batch, [-1.0 + math.log(ratio)])
    return float(loss[batch.loss_mask]), -float(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_zero_outside_the_loss_mask_even_among_nans(name: str):
    column = [-1.0, -2.0, -0.5]
    columns: dict[str, Any] = {"old": column, "reference": column, "sampled": column, "target": [1.0, 0.0, 0.25]}
    batch = packed(1, 2, advantage=[1.0, -1.0, 0.5], **columns)
    loss, gradient, _ = apply(LOSSES[name], batch, [-1.1, -1.9, -0.6])
    assert loss.shape == batch.weight.shape
    assert loss[~batch.loss_mask].tolist() == [0.0] * 4
    assert gradient[~batch.loss_mask].tolist() == [0.0] * 4
    assert torch.isfinite(loss).all()
    assert gradient[batch.loss_mask].abs().min() > 0 or name == "k1"


@pytest.mark.parametrize("target, p", [(1.0, 0.8), (0.0, 0.8), (0.25, 0.6)])
def test_token_bce_is_the_cross_entropy_with_the_target(target: float, p: float):
    batch = packed(1, target=[target])
    loss, _, gradient = apply(token_bce(), batch, [math.log(p)])
    assert float(loss[batch.loss_mask]) == pytest.approx(
        -target * math.log(p) - (1 - target) * math.log(1 - p), rel=1e-5
    )
    assert float(gradient) == pytest.approx((p - target) / (1 - p), rel=1e-4)  # d/dlog p


def test_an_implicit_reward_is_beta_times_the_log_ratio_of_the_whole_sequence():
    """beta .5, ratios e^1 and e^1: r = 1, sigma(1) = .731; the loss is -log .731 if right, -log .269 if wrong."""
    columns: dict[str, Any] = {"target": [1.0, 1.0, 0.0, 0.0], "reference": [-2.0, -2.0, -2.0, -2.0]}
    batch = packed(2, 2, **columns)
    loss, _, gradient = apply(implicit_prm(0.5), batch, [-1.0] * 4)
    right = 1 / (1 + math.exp(-1))
    expected = [-math.log(right)] * 2 + [-math.log(1 - right)] * 2
    assert loss[batch.loss_mask].tolist() == pytest.approx(expected, rel=1e-5)
    # beta (sigma(r) - target), once for each of the two tokens that have the loss
    assert gradient.tolist() == pytest.approx([right - 1] * 2 + [right] * 2, rel=1e-4)


def test_token_bce_unlearns_a_label_token_that_is_certain_and_wrong():
    """d/dlog p is p / (1 - p): the push against the token's logit does not fade as it becomes certain."""
    gradients = [float(apply(token_bce(), packed(1, target=[0.0]), [log])[2]) for log in (-1e-3, -5e-7)]
    assert gradients == [pytest.approx(999.5, rel=1e-3), pytest.approx(1e6, rel=1e-2)]


def test_token_bce_of_probability_1_stays_finite():
    loss, _, gradient = apply(token_bce(), packed(1, target=[0.0]), [0.0])
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["policy_gradient", "grpo", "gspo", "rloo", "cispo"])
def test_advantage_zero_is_a_gradient_of_exactly_zero(name: str):
    batch = packed(1, 2, advantage=[0.0] * 3, old=[-1.0, -2.0, -0.5])
    _, gradient, _ = apply(LOSSES[name], batch, [-1.1, -1.9, -0.6])
    assert not gradient.any()


@pytest.mark.parametrize(
    "advantage, ratio, coefficient",
    [
        (1.0, 1.3, 0.0),  # likely enough already
        (1.0, 0.7, 0.7),  # live
        (-1.0, 0.7, 0.0),  # unlikely enough already
        (-1.0, 1.3, -1.3),  # live,
        (-1.0, 50.0, -50.0),  # and unbounded
        (1.0, 1.1, 1.1),
        (-1.0, 0.9, -0.9),
    ],
)
def test_clip_truth_table(advantage: float, ratio: float, coefficient: float):
    _, found = at_ratio(clipped_surrogate(0.2, 0.2), advantage, ratio)
    assert found == pytest.approx(coefficient, rel=1e-5)


def test_clip_higher_moves_only_the_upper_bound():
    assert at_ratio(clipped_surrogate(0.2, 0.28), 1.0, 1.25)[1] == pytest.approx(1.25, rel=1e-5)
    assert at_ratio(clipped_surrogate(0.2, 0.28), 1.0, 1.29)[1] == 0.0
    assert at_ratio(clipped_surrogate(0.2, 0.28), -1.0, 0.79)[1] == 0.0


def test_dual_clip_bounds_the_unbounded_corner():
    assert at_ratio(clipped_surrogate(dual=3.0), -2.0, 50.0) == (pytest.approx(6.0), 0.0)
    assert at_ratio(clipped_surrogate(dual=3.0), -2.0, 2.0)[1] == pytest.approx(-4.0, rel=1e-5)
    assert at_ratio(clipped_surrogate(dual=3.0), 2.0, 0.1)[1] == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("ratio, coefficient", [(0.1, 0.1), (1.1, 1.1), (1.2, 1.2), (7.0, 1.28)])
@pytest.mark.parametrize("advantage", [1.0, -0.5])
def test_cispo_drops_no_token(advantage: float, ratio: float, coefficient: float):
    assert at_ratio(cispo(0.28), advantage, ratio)[1] == pytest.approx(coefficient * advantage, rel=1e-5)


def test_gspo_ratio_is_the_geometric_mean_and_reaches_every_token():
    batch = packed(1, 3, advantage=[1.0, 2.0, 2.0, 2.0], old=[-1.0] * 4)
    wide = clipped_surrogate(0.9, 9.0, level="sequence")
    loss, gradient, _ = apply(wide, batch, [-1.0, -1.0 + 0.6, -1.0 - 0.1, -1.0 + 0.1])
    ratio = math.exp(0.6 / 3)
    assert loss[batch.loss_mask].tolist() == pytest.approx([-1.0] + [-2 * ratio] * 3)
    assert gradient[batch.loss_mask].tolist() == pytest.approx([-0.5] + [-2 * ratio / 3 / 2] * 3)


def test_gspo_clips_a_sequence_as_a_whole():
    batch = packed(1, 3, advantage=[1.0] * 4, old=[-1.0] * 4)
    _, gradient, _ = apply(clipped_surrogate(0.2, 0.2, level="sequence"), batch, [-1.0, -1.0 + 0.9, -1.0, -1.0])
    assert gradient[batch.loss_mask].tolist() == pytest.approx([-0.5, 0, 0, 0])


def test_product_ratio_makes_the_sequence_one_action():
    batch = packed(1, 3, advantage=[1.0, 2.0, 2.0, 2.0], old=[-1.0] * 4)
    wide = clipped_surrogate(0.9, 9.0, level="product")
    _, gradient, _ = apply(wide, batch, [-1.0, -1.0 + 0.3, -1.0, -1.0 + 0.1])
    assert gradient[batch.loss_mask].tolist() == pytest.approx([-0.5] + [-2 * math.exp(0.4) / 2] * 3)


@pytest.mark.parametrize("aggregation", [sequence_mean, sequence_sum])
def test_first_update_of_grpo_is_reinforce(aggregation: Aggregation):
    advantage, logprob = [1.0, -0.5, -0.5, -0.5], [-1.0, -0.3, -2.0, -4.0]
    batch = packed(1, 3, aggregation=aggregation, advantage=advantage, old=logprob)
    expected = apply(policy_gradient(), batch, logprob)[1]
    for loss_fn in (clipped_surrogate(), clipped_surrogate(on_policy=True), cispo(0.2)):
        torch.testing.assert_close(apply(loss_fn, batch, logprob)[1], expected, rtol=1e-5, atol=0)


def test_on_policy_needs_no_old_column():
    batch = packed(1, advantage=[1.0])
    apply(clipped_surrogate(on_policy=True), batch, [-1.0])
    with pytest.raises(SchoolError, match='"old".*its columns: advantage'):
        apply(clipped_surrogate(), batch, [-1.0])


@pytest.mark.parametrize(
    "estimator, d, value",
    [
        ("k1", 0.1, -0.1),
        ("k1", -1.0, 1.0),
        ("k2", 0.1, 0.005),
        ("k2", -1.0, 0.5),
        ("k3", 0.1, 0.005171),
        ("k3", -0.1, 0.004837),
        ("k3", 1.0, 0.718282),
        ("k3", -1.0, 0.367879),
    ],
)
def test_kl_values(estimator: KLEstimator, d: float, value: float):
    batch = packed(1, reference=[-2.0 + d])
    loss, _, _ = apply(kl_penalty(estimator), batch, [-2.0])
    assert float(loss[batch.loss_mask]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("d", [0.1, -0.1, 1.0, -1.0])
def test_kl_gradient_coefficients_in_ascent(d: float):
    batch = packed(1, reference=[-2.0 + d])
    beta = 0.04

    def coefficient(estimator: KLEstimator, ratio: ImportanceLevel | None = None) -> float:
        loss_fn = add_penalty(negative_log_likelihood(), beta, kl_penalty(estimator, ratio, on_policy=True))
        return -float(apply(loss_fn, batch, [-2.0])[2]) - 1.0  # without that of the likelihood

    assert coefficient("k1") == pytest.approx(-beta, abs=1e-6)
    assert coefficient("k2") == pytest.approx(beta * d, abs=1e-6)
    assert coefficient("k3") == pytest.approx(beta * (math.exp(d) - 1), abs=1e-6)
    assert coefficient("k3", ratio="token") == pytest.approx(beta * d, abs=1e-6)


def test_the_kl_penalty_can_be_multiplied_by_the_ratio():
    batch = packed(2, reference=[-2.0, -1.0], old=[-1.5, -0.5])
    plain, _, _ = apply(kl_penalty("k3"), batch, [-1.0, -2.0])
    log_ratios: dict[ImportanceLevel, list[float]] = {"token": [0.5, -1.5], "sequence": [-0.5, -0.5]}
    for level, log_ratio in log_ratios.items():
        weighted, _, _ = apply(kl_penalty("k3", ratio=level), batch, [-1.0, -2.0])
        torch.testing.assert_close(weighted, plain * torch.tensor([0.0, 0.0, *log_ratio]).exp())


def test_importance_weights_of_tokens_are_capped():
    batch = packed(2, advantage=[1.0, 1.0], old=[-1.0, -1.0], sampled=[-1.5, -3.0])
    _, _, gradient = apply(importance_corrected(policy_gradient(), cap=2.0), batch, [-1.0, -1.0])
    assert (-gradient).tolist() == pytest.approx([math.exp(0.5), 2.0])


def test_importance_weights_above_the_cap_can_be_masked():
    batch = packed(2, advantage=[1.0, 1.0], old=[-1.0, -1.0], sampled=[-1.5, -3.0])
    _, _, gradient = apply(importance_corrected(policy_gradient(), cap=2.0, mask=True), batch, [-1.0, -1.0])
    assert (-gradient).tolist() == pytest.approx([math.exp(0.5), 0.0])


def test_importance_weights_of_sequences_are_products():
    batch = packed(1, 2, advantage=[1.0] * 3, sampled=[-1.0, -1.5, -0.7])
    loss_fn = importance_corrected(policy_gradient(), level="product", on_policy=True)
    _, _, gradient = apply(loss_fn, batch, [-1.2, -1.0, -1.0])
    assert (-gradient).tolist() == pytest.approx([math.exp(-0.2)] + [math.exp(0.2)] * 2)


def dppo_gradient(old: float, new: float, advantage: float, divergence: Divergence, limit: float) -> float:
    """Minus the gradient of the loss of one token (with its weight 1) with respect to its log-probability."""
    batch = packed(1, advantage=[advantage], old=[math.log(old)])
    logprob = torch.full((3,), math.log(new), requires_grad=True)
    loss = dppo(limit, limit, divergence)(batch, Scores(logprob, logprob.detach()))
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return -float(gradient[batch.loss_mask])


@pytest.mark.parametrize(
    ("old", "new", "advantage", "expected"),
    [
        (0.5, 0.7, 1.0, 0.0),  # risen by .2 with an advantage above 0
        (0.5, 0.6, 1.0, 1.2),  # risen by .1: live, and the factor is the ratio
        (0.5, 0.3, 1.0, 0.6),  # fallen: the advantage pulls it back
        (0.5, 0.3, -1.0, 0.0),
        (0.5, 0.4, -1.0, -0.8),
        (0.5, 0.7, -1.0, -1.4),
        (1e-5, 1e-3, 1.0, 100.0),  # a ratio clip would drop this rare token
        (0.99, 0.8, -1.0, 0.0),  # a ratio clip of .2 would allow this large change
    ],
)
def test_dppo_masks_by_total_variation_and_direction(old: float, new: float, advantage: float, expected: float):
    """Qi et al. 2026, arXiv 2602.04879, with the limit .15."""
    assert dppo_gradient(old, new, advantage, "tv", 0.15) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("old", "new", "advantage"), [(0.5, 0.9, 1.0), (0.6, 0.2, -1.0), (0.99, 0.75, -1.0)])
def test_dppo_masks_by_the_divergence_of_two_outcomes(old: float, new: float, advantage: float):
    kl = old * math.log(old / new) + (1 - old) * math.log((1 - old) / (1 - new))
    assert dppo_gradient(old, new, advantage, "kl", kl * 0.99) == 0.0
    assert dppo_gradient(old, new, advantage, "kl", kl * 1.01) == pytest.approx(advantage * new / old, rel=1e-4)
    assert dppo_gradient(old, new, -advantage, "kl", kl * 0.99) == pytest.approx(-advantage * new / old, rel=1e-4)


def test_dppo_has_finite_gradients_for_certain_tokens():
    for old, new in ((1.0, 0.5), (0.5, 1.0), (1.0, 1.0)):
        assert math.isfinite(dppo_gradient(old, new, 1.0, "kl", 0.05))


def test_ratio_stats_count_tokens_that_dppo_masks():
    batch = packed(4, advantage=[1.0, 1.0, -1.0, -1.0], old=[math.log(0.5)] * 4)
    logprob = torch.full((6,), NAN)
    logprob[batch.loss_mask] = torch.tensor([0.7, 0.6, 0.3, 0.7]).log()
    stats = ratio_stats(batch, Scores(logprob, logprob), 0.15, 0.15, divergence="tv")
    assert (stats["clip_frac_low"], stats["clip_frac_high"]) == (0.25, 0.25)


def test_ratio_stats_count_a_clip_of_sequences_by_sequences():
    """Two tokens of one sequence, one twice and one half as likely: the geometric mean is 1."""
    batch = packed(2, advantage=[1.0, 1.0], old=[-1.0, -1.0])
    logprob = torch.full((4,), NAN)
    logprob[batch.loss_mask] = torch.tensor([-1.0, -1.0]) + torch.tensor([2.0, 0.5]).log()
    tokens, sequence = (ratio_stats(batch, Scores(logprob, logprob), 0.2, 0.2, level) for level in LEVELS)
    assert (tokens["clip_frac_high"], sequence["clip_frac_high"]) == (0.5, 0.0)
    assert tokens["ratio"] == sequence["ratio"] == pytest.approx(1.25)


def test_ratio_stats_count_tokens_whose_gradient_the_clip_removes():
    ratios = [1.5, 0.5, 0.5, 0.5, 1.0, 1.5, 1.5, 1.5]
    old = [-1.0] * 8
    batch = packed(8, advantage=[1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0], old=old)
    logprob = torch.full((10,), NAN)
    logprob[batch.loss_mask] = torch.tensor(old) + torch.tensor(ratios).log()
    stats = ratio_stats(batch, Scores(logprob, logprob), 0.2, 0.2)
    assert stats["tokens"] == 8
    assert stats["ratio"] == pytest.approx(sum(ratios) / 8)
    assert (stats["clip_frac_low"], stats["clip_frac_high"]) == (pytest.approx(2 / 8), pytest.approx(3 / 8))
    assert stats["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 8, rel=1e-5)


# --- score centering

Q3, P3 = [0.5, 0.3, 0.2], [0.7, 0.18, 0.12]
"""A sampler and a learner. Their tokens 1 and 2 have the same proportions, as score centering assumes of the rest."""


def centring_gradient(q: list[float], p: list[float], k: int, cap: float | None, mask: bool) -> list[float]:
    """The gradient of the penalty with an advantage of 2 with respect to the learner's logits."""
    logits = torch.tensor(p).log().requires_grad_()
    sampled = torch.tensor(q).log().topk(k)
    batch = replace(packed(1, advantage=[2.0]), candidates=(sampled.indices[None], sampled.values[None]))
    logprob = torch.full((3,), -1.0)
    scores = Scores(logprob, logprob, logits.log_softmax(-1)[sampled.indices][None])
    loss = score_centering(cap, mask)(batch, scores)
    assert loss[~batch.loss_mask].tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return gradient.tolist()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    ("cap", "mask", "weight"),
    [
        (None, False, lambda ratio: 1.0),
        (1.1, False, lambda ratio: min(ratio, 1.1)),
        (1.1, True, lambda ratio: ratio if ratio <= 1.1 else 0.0),
        (2.0, False, lambda ratio: ratio),
    ],
)
def test_score_centering_has_the_gradient_of_the_mean_score(k: int, cap: float | None, mask: bool, weight: Any):
    """Whatever the number of candidates, because the rest of the sampler is proportional to that of the learner."""
    expected = [0.0] * 3
    for token, (q, p) in enumerate(zip(Q3, P3, strict=True)):
        for logit in range(3):
            expected[logit] += 2.0 * q * weight(p / q) * ((token == logit) - P3[logit])
    assert centring_gradient(Q3, P3, k, cap, mask) == pytest.approx(expected, abs=1e-5)


def test_score_centering_of_two_tokens_in_numbers():
    """With all tokens as candidates, the coefficient of log pi(v) is A (q(v) - pi(v))."""
    assert centring_gradient([0.5, 0.5], [0.6, 0.4], 2, None, False) == pytest.approx([-0.2, 0.2], abs=1e-6)


def test_score_centering_has_no_gradient_if_sampler_and_learner_agree():
    for k in (1, 2, 3):
        assert centring_gradient(Q3, Q3, k, None, False) == pytest.approx([0.0] * 3, abs=1e-5)


def test_score_centering_is_finite_for_tokens_that_cannot_be_sampled():
    """An id without a token has the probability 0 in both policies."""
    gradient = centring_gradient([0.6, 0.4, 0.0], [0.5, 0.5, 0.0], 3, None, False)
    assert gradient == pytest.approx([0.2, -0.2, 0.0], abs=1e-5)


def test_score_centering_needs_candidates():
    with pytest.raises(SchoolError, match="score centering needs the candidates of the sampler"):
        apply(score_centering(), packed(1, advantage=[1.0]), [-1.0])
