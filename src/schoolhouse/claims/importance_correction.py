"""Rollouts of a sampler that differs from the policy need importance weights, or the gradient is biased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.algorithms.losses import Loss, importance_corrected, policy_gradient
from schoolhouse.algorithms.packing import sequence_sum
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.figures import plot_accuracy, plot_metric
from schoolhouse.claims.harness.gradient_check import (
    LOGIT_NOISE,
    LOGITS,
    exact_gradient,
    gradient_estimates,
    max_standard_errors,
    sample_groups,
)
from schoolhouse.claims.harness.models import CHAINS_OF_4, chain_model, grpo_step, require_tiny, signal_check

RECIPE = "schoolhouse.claims.harness.noisy_grpo"
NOISE = 1.0
MAX_ERROR_EXACT, MIN_ERROR_BIASED = 4.0, 5.0
"""Standard errors of 50,000 groups: the largest of 16 parameters is beyond 4 by chance once in a thousand times."""
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "no_noise": ("the sampler is the policy", {"sampler_noise": 0.0, "max_logprob_gap": 0.1}),
    "uncorrected": ("noise on the sampler's logits", {}),
    "token": ("and truncated importance sampling by token", {"loss.importance_correction": "token"}),
    "product": ("and by the product over the sequence", {"loss.importance_correction": "product"}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start, measures = chain_model(seed), {"eval": CHAINS_OF_4}
    noisy = {"sampler_noise": NOISE, "max_logprob_gap": 100.0}
    return {
        "start": Arm(start, measures, "fine-tuned on demonstrations of chains"),
        **{
            name: Arm(grpo_step(start, seed, {**noisy, **changes}, RECIPE), measures, about)
            for name, (about, changes) in ARMS.items()
        },
    }


def check(results: Results) -> Sequence[Check]:
    gaps = [fmean(curve[:5]) for curve in results.curves("uncorrected", "logprob_gap")]
    difference = results.difference("uncorrected", "token")
    gains = results.gains("uncorrected", "token")
    return [
        signal_check(results, "uncorrected"),
        Check(
            "premise",
            "sampler and learner log-probabilities differ by more than .02",
            format_values(gaps),
            min(gaps) > 0.02,
        ),
        Check(
            "must hold", "token: pass@1 above uncorrected in each seed", format_values(gains, sign=True), min(gains) > 0
        ),
        Check(
            "must hold",
            "token: mean difference to uncorrected, its interval above 0",
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
            difference.low > 0,
        ),
        *gradient_checks(results.seeds),
        *(Check("reported", f"{name}: pass@1", format_values(results.by_seed(name)), True) for name in ARMS),
    ]


def gradient_checks(seeds: Sequence[int]) -> list[Check]:
    """Whether each correction gives the exact gradient of an enumerable policy with a noisy sampler."""
    losses: Mapping[str, Loss] = {
        "none": policy_gradient(),
        "token": importance_corrected(policy_gradient(), "token", on_policy=True),
        "product": importance_corrected(policy_gradient(), "product", on_policy=True),
    }
    exact, errors = exact_gradient(), {name: list[float]() for name in losses}
    for seed in seeds:
        groups = sample_groups(LOGITS + LOGIT_NOISE, 2 + seed)
        for name, loss in losses.items():
            estimates = gradient_estimates(groups, loss, sequence_sum, baseline="none", scale="none")
            errors[name].append(max_standard_errors(estimates, exact))
    unit = "standard errors from the exact gradient of an enumerable policy, the worst parameter, each seed"
    return [
        Check(
            "must hold",
            f"product, not truncated: within {MAX_ERROR_EXACT} {unit}",
            format_values(errors["product"], 1),
            max(errors["product"]) < MAX_ERROR_EXACT,
        ),
        Check(
            "must fail",
            f"no correction: beyond {MIN_ERROR_BIASED} {unit}",
            format_values(errors["none"], 1),
            min(errors["none"]) > MIN_ERROR_BIASED,
        ),
        Check("reported", f"token, not truncated: {unit}", format_values(errors["token"], 1), True),
    ]


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    plot_accuracy(left, results, [*ARMS])
    plot_metric(right, results, [*ARMS], "logprob_gap", "gap of sampler and learner log-probability, nats")


CLAIM = Claim(
    id="importance_correction",
    paper="truncated importance sampling as in verl and TRL; Espeholt et al. 2018, arXiv 1802.01561",
    sentence="Weights of min(policy / sampler, 2) repair RL whose sampler differs from the policy",
    budget="45 steps of 32 problems x 16 rollouts of at most 64 tokens in every arm; evaluations without the noise",
    premise="groups have mixed rewards, and the sampler differs from the policy",
    rule="truncated importance sampling ends above no correction in every seed, and the interval of the mean "
    "difference, paired by problem, is above 0; for a policy that can be enumerated the product of ratios gives the "
    "exact gradient, and no correction does not",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "The arm `product` is truncated at 2, so it is not the exact one of the enumerable policy. In an earlier count "
        "the enumerable policy was a test, not a part of the verdict.",
    ),
)
