"""A vote weighted by a reward model is at least as accurate as an unweighted vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import COUNTS
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.models import require_tiny

REWARD_MODELS = ("process", "outcome", "shuffled")
LARGE_COUNTS = [n for n in COUNTS if n >= 4]
MAX_CONTROL_GAIN = 0.02


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    shared = chain_reward_models.reward_model_arms(seed)
    return {name: shared[name] for name in REWARD_MODELS}


def check(results: Results) -> Sequence[Check]:
    def means(arm: str, vote: str) -> list[float]:
        return [fmean(results.by_seed(arm, f"{vote}_{n}", "selection")) for n in LARGE_COUNTS]

    plain = means("process", "vote")
    checks = []
    for arm in ("process", "outcome"):
        weighted = means(arm, "weighted")
        holds = all(a >= b for a, b in zip(weighted, plain, strict=True))
        text = (
            f"with weights from the {arm} reward model, the vote is at least as accurate as the unweighted vote "
            f"for N = {', '.join(map(str, LARGE_COUNTS))}, in the mean of seeds"
        )
        checks.append(
            Check(
                "must hold",
                text,
                f"accuracy of the vote: weighted {format_values(weighted)}, unweighted {format_values(plain)}",
                holds,
            )
        )
    at = LARGE_COUNTS.index(64)
    gain = means("shuffled", "weighted")[at] - plain[at]
    text = (
        "with weights from a reward model with shuffled labels, the accuracy of the vote of 64 answers is at most "
        f"{MAX_CONTROL_GAIN} above the unweighted vote"
    )
    checks.append(Check("must fail", text, f"{gain:+.3f}", gain <= MAX_CONTROL_GAIN))
    return checks


def draw(results: Results, picture: Any) -> None:
    axes = picture.subplots()
    for arm in REWARD_MODELS:
        if arm in results.arms:
            axes.plot(COUNTS, [results.mean(arm, f"weighted_{n}", "selection") for n in COUNTS], "o-", label=arm)
    if "process" in results.arms:
        axes.plot(COUNTS, [results.mean("process", f"vote_{n}", "selection") for n in COUNTS], "k--", label="plain")
    axes.set(xscale="log", xlabel="N", ylabel="accuracy of the vote", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


CLAIM = Claim(
    id="weighted_vote",
    paper="Snell et al. 2024, arXiv 2408.03314; Wang et al. 2023, arXiv 2312.08935",
    sentence="A vote is more accurate when each answer is weighted by its score from a reward model",
    budget="the reward models of the claim prm, with 256 answers to each of 100 problems",
    premise="none",
    rule="with 4 or more answers, a vote weighted by the process or by the outcome reward model is at least as "
    "accurate as an unweighted vote, in the mean of seeds. A vote weighted by a reward model with shuffled labels "
    "is not more accurate than an unweighted vote.",
    arms=arms,
    check=check,
    draw=draw,
)
