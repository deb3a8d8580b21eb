"""Votes weighted by a judge of steps are right at least as often as votes that all count the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import COUNTS
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.models import only_tiny

FROM = [n for n in COUNTS if n >= 4]


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    found = chain_reward_models.arms(seed)
    return {name: found[name] for name in ("process", "outcome", "shuffled")}


def judge(results: Results) -> Sequence[Check]:
    def means(arm: str, kind: str) -> list[float]:
        return [fmean(results.each(arm, f"{kind}_{n}", "picks")) for n in FROM]

    plain = means("process", "vote")
    checks = []
    for arm in ("process", "outcome"):
        weighted = means(arm, "weighted")
        holds = all(a >= b for a, b in zip(weighted, plain, strict=True))
        text = f"{arm}: N = {', '.join(map(str, FROM))}, weighted >= plain, mean of seeds"
        checks.append(Check("must hold", text, f"{told(weighted)} against {told(plain)}", holds))
    dealt = means("shuffled", "weighted")
    text = "labels dealt anew: the weighted vote of 64 is at most .02 above the plain one"
    gap = dealt[FROM.index(64)] - plain[FROM.index(64)]
    checks.append(Check("must fail", text, f"{gap:+.3f}", gap <= 0.02))
    return checks


def draw(results: Results, picture: Any) -> None:
    axes = picture.subplots()
    for arm in ("process", "outcome", "shuffled"):
        if arm in results.arms:
            axes.plot(COUNTS, [results.mean(arm, f"weighted_{n}", "picks") for n in COUNTS], "o-", label=arm)
    if "process" in results.arms:
        axes.plot(COUNTS, [results.mean("process", f"vote_{n}", "picks") for n in COUNTS], "k--", label="plain")
    axes.set(xscale="log", xlabel="N", ylabel="vote right", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


CLAIM = Claim(
    id="weighted_vote",
    paper="Snell et al. 2024, arXiv 2408.03314; Wang et al. 2023, arXiv 2312.08935",
    sentence="Counting each answer for what a judge gives it makes a vote better",
    budget="the judges of claim prm; 100 problems x 256 answers",
    premise="none",
    rule="weighted by the judge of steps or of answers, a vote of 4 and more is right at least as often as a plain one "
    "in the mean of seeds; weighted by a judge of dealt labels it gains nothing",
    arms=arms,
    judge=judge,
    draw=draw,
)
