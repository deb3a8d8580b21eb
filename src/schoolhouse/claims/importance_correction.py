"""A sampler that is not quite the policy: learning from its words needs weights, or it learns the wrong thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from schoolhouse.algorithms.losses import Loss, importance_corrected, policy_gradient
from schoolhouse.algorithms.packing import sequence_sum
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.figures import course, learning
from schoolhouse.claims.harness.gradient_check import NOISE as TOY_NOISE
from schoolhouse.claims.harness.gradient_check import TABLE, estimate, exact_gradient, furthest, sample
from schoolhouse.claims.harness.models import CHAINS, chains, mixed_share, only_tiny, practice

RECIPE = "schoolhouse.claims.harness.noisy_grpo"
NOISE = 1.0
EXACT, WRONG = 4.0, 5.0
"""Standard errors of 50,000 groups: the largest of 16 parameters is beyond 4 by chance once in a thousand times."""
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "faithful": ("the sampler is the policy", {"sampler_noise": 0.0, "max_logprob_gap": 0.1}),
    "uncorrected": ("noise on the sampler's logits", {}),
    "token": ("and truncated importance sampling by token", {"loss.importance_correction": "token"}),
    "product": ("and by the product over the sequence", {"loss.importance_correction": "product"}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start, exam = chains(seed), {"exam": CHAINS}
    noisy = {"sampler_noise": NOISE, "max_logprob_gap": 100.0}
    return {
        "start": Arm(start, exam, "fine-tuned on worked chains"),
        **{
            name: Arm(replace(practice(start, seed, **{**noisy, **keys}), recipe=RECIPE), exam, about)
            for name, (about, keys) in ARMS.items()
        },
    }


def judge(results: Results) -> Sequence[Check]:
    gaps = [fmean(row[:5]) for row in results.course("uncorrected", "logprob_gap")]
    better = results.difference("uncorrected", "token")
    gains = results.gains("uncorrected", "token")
    return [
        mixed_share(results, "uncorrected"),
        Check("premise", "sampled and learned log-probabilities differ by more than .02", told(gaps), min(gaps) > 0.02),
        Check("must hold", "token: pass@1 above uncorrected in each seed", told(gains, sign=True), min(gains) > 0),
        Check(
            "must hold",
            "token: mean difference to uncorrected, its interval above 0",
            f"{better.value:+.3f} [{better.low:+.3f}, {better.high:+.3f}]",
            better.low > 0,
        ),
        *on_the_toy(results.seeds),
        *(Check("reported", f"{name}: pass@1", told(results.each(name)), True) for name in ARMS),
    ]


def on_the_toy(seeds: Sequence[int]) -> list[Check]:
    """Where the exact gradient can be enumerated: is it followed, by a sampler whose logits are a little off?"""
    ways: Mapping[str, Loss] = {
        "none": policy_gradient(),
        "token": importance_corrected(policy_gradient(), "token", on_policy=True),
        "product": importance_corrected(policy_gradient(), "product", on_policy=True),
    }
    truth, found = exact_gradient(), {name: list[float]() for name in ways}
    for seed in seeds:
        groups = sample(TABLE + TOY_NOISE, 2 + seed)
        for name, objective in ways.items():
            estimates = estimate(groups, objective, sequence_sum, baseline="none", scale="none")
            found[name].append(furthest(estimates, truth))
    unit = "standard errors from the exact gradient of a toy, the furthest parameter, each seed"
    return [
        Check(
            "must hold",
            f"product, uncapped: within {EXACT} {unit}",
            told(found["product"], 1),
            max(found["product"]) < EXACT,
        ),
        Check("must fail", f"no correction: within {WRONG} {unit}", told(found["none"], 1), min(found["none"]) > WRONG),
        Check("reported", f"token, uncapped: {unit}", told(found["token"], 1), True),
    ]


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    learning(left, results, [*ARMS])
    course(right, results, [*ARMS], "logprob_gap", "gap of sampled and learned log-probability, nats")


CLAIM = Claim(
    id="importance_correction",
    paper="truncated importance sampling as in verl and TRL; Espeholt et al. 2018, arXiv 1802.01561",
    sentence="Weighing by min(policy / sampler, 2) mends practice whose sampler differs from the policy",
    budget="45 steps of 32 problems x 16 rollouts of at most 64 tokens in every arm; exams without the noise",
    premise="groups are mixed, and the sampler really differs",
    rule="truncated importance sampling ends above no correction in every seed, and the interval of the mean "
    "difference, paired by problem, is above 0; on a toy that can be enumerated the product of ratios gives the exact "
    "gradient, and no correction does not",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "The arm `product` is cut at 2, so it is not the toy's exact one. Before, the toy was a test and no part of "
        "the verdict.",
    ),
)
