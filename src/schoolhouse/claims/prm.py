"""Grading the steps picks better answers than grading the end, and both better than counting votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import COUNTS, LENGTH, TASK, Picks
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.models import only_tiny

AUC, F1, NEAR = 0.9, 0.8, 0.05
FROM = [n for n in COUNTS if n >= 8]


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    found = chain_reward_models.arms(seed)
    process = found["process"]
    other = {"picks": Picks(task=TASK, problems=100, samples=256, max_new_tokens=LENGTH, delimiter="\n")}
    names = ("process", "outcome", "shuffled")
    lost = Arm(process.step, other, "the judge of steps, asked where another task's steps would end", process.beside)
    return {**{name: found[name] for name in names}, "other_delimiter": lost}


def judge(results: Results) -> Sequence[Check]:
    def each(arm: str, metric: str) -> list[float]:
        return results.each(arm, metric, "picks")

    def mean(arm: str, metric: str) -> float:
        return fmean(each(arm, metric))

    one = each("process", "pass_at_1")
    process, outcome = ([mean(arm, f"best_{n}") for n in FROM] for arm in ("process", "outcome"))
    vote = [mean("process", f"vote_{n}") for n in FROM]
    gaps = [a - b for a, b in zip(process, outcome, strict=True)]
    checks = [
        Check("premise", "the generator is right .1 to .6 of the time", told(one), 0.1 <= min(one) <= max(one) <= 0.6),
        Check(
            "must hold",
            f"best of N = {', '.join(map(str, FROM))}: process >= outcome, mean of seeds",
            f"{told(process)} against {told(outcome)}",
            min(gaps) >= 0,
        ),
        Check(
            "must hold",
            "and outcome >= majority",
            f"{told(outcome)} against {told(vote)}",
            all(a >= b for a, b in zip(outcome, vote, strict=True)),
        ),
        Check("must hold", "the gap does not shrink from the first to the last", told(gaps), gaps[-1] >= gaps[0]),
    ]
    for name, least in (("auc", AUC), ("f1", F1)):
        found = each("process", name)
        text = {"auc": "right steps above wrong ones (AUC)", "f1": "first wrong step found (F1)"}[name]
        checks.append(Check("must hold", f"process: {text} above {least}, each seed", told(found), min(found) > least))
    for name, about in (("shuffled", "labels dealt anew"), ("other_delimiter", "another delimiter")):
        apart = [a - b for a, b in zip(each(name, "best_64"), one, strict=True)]
        holds = max(apart) <= NEAR
        checks.append(
            Check("must fail", f"{about}: best of 64 at most {NEAR} above pass@1", told(apart, sign=True), holds)
        )
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for arm in ("process", "outcome", "shuffled", "other_delimiter"):
        if arm in results.arms:
            left.plot(COUNTS, [results.mean(arm, f"best_{n}", "picks") for n in COUNTS], "o-", label=f"best by {arm}")
    if "process" in results.arms:
        left.plot(COUNTS, [results.mean("process", f"vote_{n}", "picks") for n in COUNTS], "k--", label="majority")
        names = ("auc", "f1")
        right.bar(names, [results.mean("process", name, "picks") for name in names], color="0.8")
        for at, name in enumerate(names):
            values = results.each("process", name, "picks")
            right.plot([at] * len(values), values, "k.")
    left.set(xscale="log", xlabel="N", ylabel="share right", ylim=(0, 1.02))
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.set(ylim=(0, 1.02), title="single steps")


CLAIM = Claim(
    id="prm",
    paper="Lightman et al. 2023, arXiv 2305.20050",
    sentence="A judge of steps picks right answers more often than a judge of answers, and both than a vote",
    budget="16,000 solutions labelled for each judge; 800 updates, for the judge of answers 1,600; 100 problems x 256 "
    "answers to pick from",
    premise="the generator is right .1 to .6 of the time",
    rule="from N = 8 on process >= outcome >= majority in the mean of seeds, and the gap does not shrink; AUC of steps "
    "above .9 and F1 of first errors above .8 in each seed; shuffled labels and another delimiter pick no better than "
    "chance",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "What did not hold: asked with a delimiter that does not occur, the judge of steps sees the answer alone, "
        "and what it says there is worth .05 and .06 in two seeds, where .05 was allowed (steps, asked rightly, are "
        "worth .61).",
        "",
        "Counted twice before. With a generator that erred because it was half taught, and 8,000 solutions: FAIL "
        "(generators of .11 to .59, and beyond N = 8 nobody beat the vote). With this one and 800 updates for every "
        "judge: FAIL in two lines. The judge of answers picked .013 worse than a vote from 256, and its "
        "loss was still falling (.49 to .43 in the last 200 updates) where that of the judge of steps had settled "
        "(.01): whole solutions teach slower, so it has twice the updates now. And asked behind `=`, in the middle "
        "of steps, the judge of steps picked .005 .068 -.008 better than chance: there it still knows whether what "
        "came before was right.",
    ),
)
