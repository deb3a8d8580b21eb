"""Does practice teach what could not be done before? pass@k up to 256, before and after, from two starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.bases import CHAINS, chains, early, only_tiny, practice
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Exam, Results, Scale, told

MANY = Exam(task=CHAINS.task, problems=100, samples=256, length=CHAINS.length)
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    taught, raw = chains(seed), early(seed)
    exams = {"exam": CHAINS, "many": MANY}
    return {
        "start": Arm(taught, exams, "fine-tuned on worked chains"),
        "practised": Arm(practice(taught, seed, like="grpo"), exams, "and practised"),
        "early": Arm(raw, exams, "a third of the fine-tuning"),
        "early_practised": Arm(practice(raw, seed, like="grpo"), exams, "and practised"),
    }


def judge(results: Results) -> Sequence[Check]:
    checks = []
    for before, after in (("start", "practised"), ("early", "early_practised")):
        one = results.gains(before, after, "pass_at_1", "many")
        checks.append(Check("must hold", f"{after}: pass@1 rises, each seed", told(one, sign=True), min(one) > 0.05))
        for k in (16, 64, 256):
            pair = [told(results.each(arm, f"pass_at_{k}", "many")) for arm in (before, after)]
            checks.append(Check("reported", f"{before} -> {after}: pass@{k}", " -> ".join(pair), True))
    return checks


def draw(results: Results, picture: Any) -> None:
    for axes, pair in zip(picture.subplots(1, 2), (("start", "practised"), ("early", "early_practised")), strict=True):
        for name in pair:
            if name not in results.arms:
                continue
            means = [results.mean(name, f"pass_at_{k}", "many") for k in KS]
            (line,) = axes.plot(KS, means, "o-", label=name)
            for seed in range(len(results.seeds)):
                row = [results.each(name, f"pass_at_{k}", "many")[seed] for k in KS]
                axes.plot(KS, row, color=line.get_color(), linewidth=0.5)
        axes.set(xscale="log", xlabel="k", ylabel="pass@k", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()


CLAIM = Claim(
    id="pass_at_k",
    paper="Yue et al. 2025, arXiv 2504.13837",
    sentence="Practice makes the likely surer: pass@1 rises, while what 256 tries reach rises little or falls",
    budget="45 steps of 32 problems x 16 rollouts of at most 64 tokens; exams of 100 problems x 256 answers",
    premise="none",
    rule="pass@1 rises by more than .05 in every seed from either start; what happens at large k is reported, not "
    "judged: papers disagree",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "What did not hold: a model at chance (.10, ten possible answers) stays there; practice finds nothing to make "
        "likelier. It was meant as a base model; a base that has read worked examples is the one to try next "
        "(`school run r1-zero`).",
        "",
        "What this cannot show: with ten possible answers 64 guesses reach nearly everything, so pass@k is 1 before "
        "and after. Large k needs a task whose answers cannot be guessed, such as countdown.",
    ),
)
