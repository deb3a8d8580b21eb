"""Praising progress teaches with fewer samples than praising the answer alone; summing grades teaches to talk on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, told
from schoolhouse.claims.harness.figures import course
from schoolhouse.claims.harness.models import chains, mixed_share, only_tiny

EXAM = Evaluation(task="school:chain?steps=6&lines=1", problems=200, samples=8, max_new_tokens=96)
HANDS = "systematic_error=70,filler=30"
"""A start with usual mistakes, which a judge of steps can point at, and idle words, which a sum of grades may pay."""
JUDGED: Mapping[str, Any] = {"num_prompts": 1000, "samples_per_prompt": 4, "sampling.temperature": 1.3, "steps": 500}
STEPS, WINDOW = 45, 5
FEWER, LONGER = 0.9, 1.3
FORMS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "outcome": ("the verdict on the answer alone", "strict", {"alpha": 0.0}),
    "progress": ("and what each step changed", "strict", {"reward_form": "progress"}),
    "raw": ("and the sum of grades, by a judge that holds idle words for right", "exact", {"reward_form": "raw"}),
}
"""What is rewarded, whose grades, and the form."""


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start, exam = chains(seed, 1500, styles=HANDS, lengths="2-6", lines=True), {"exam": EXAM}
    made = {"model": start, "generator": start, "task": EXAM.task, "sampling.max_new_tokens": EXAM.max_new_tokens, "seed": seed}
    config = {"model": start, "task": EXAM.task, "seed": seed, "sampling.max_new_tokens": EXAM.max_new_tokens}
    config |= {"steps": STEPS, "save_every": STEPS}
    arms = {"start": Arm(start, exam, "fine-tuned on worked chains")}
    arms["judge"] = Arm(Step("prm", {**made, "labels": "strict", **JUDGED}), {}, "that grades for progress")
    for name, (about, labels, keys) in FORMS.items():
        judge = Step("prm", {**made, "labels": labels, **JUDGED})
        arms[name] = Arm(Step("prm_rl", {**config, "reward_model": judge, **keys}), exam, about)
    return arms


def smooth(values: Sequence[float]) -> list[float]:
    """Means over windows of some steps."""
    return [fmean(values[at : at + WINDOW]) for at in range(len(values) - WINDOW + 1)]


def tokens_until(results: Results, arm: str, goals: Sequence[float]) -> list[float]:
    """Tokens sampled until the reward first reaches a goal, seed by seed; endless where it never does."""
    found = []
    rewards, spent = results.course(arm, "reward"), results.course(arm, "sampled_tokens")
    for row, tokens, goal in zip(rewards, spent, goals, strict=True):
        reached = next((at for at, value in enumerate(smooth(row)) if value >= goal), None)
        found.append(inf if reached is None else sum(tokens[: reached + WINDOW]))
    return found


def judge(results: Results) -> Sequence[Check]:
    goals = [smooth(row)[-1] for row in results.course("outcome", "reward")]
    own, less = tokens_until(results, "outcome", goals), tokens_until(results, "progress", goals)
    ratios = [a / b for a, b in zip(less, own, strict=True)]
    judges = [results.arms["judge"][seed].tokens for seed in results.seeds]
    whole = [(a + more) / b for a, b, more in zip(less, own, judges, strict=True)]
    said = {arm: [fmean(row[-WINDOW:]) for row in results.course(arm, "steps_said")] for arm in FORMS}
    longer = [a / b for a, b in zip(said["raw"], said["outcome"], strict=True)]
    gains = results.gains("outcome", "raw")
    graded = [[fmean(row[:WINDOW]), fmean(row[-WINDOW:])] for row in results.course("raw", "graded")]
    return [
        mixed_share(results, "outcome"),
        Check(
            "must hold",
            f"progress: the outcome arm's last reward with at most {FEWER} of its tokens, mean of seeds",
            f"{told(ratios, 2)}",
            fmean(ratios) <= FEWER,
        ),
        Check(
            "must fail",
            f"raw: {LONGER} times as many steps said at the end, and a lower pass@1, mean of seeds",
            f"{told(longer, 2)}; {told(gains, sign=True)}",
            fmean(longer) >= LONGER and fmean(gains) < 0,
        ),
        Check("reported", "progress: the same, with the tokens that its judge learned from", told(whole, 2), True),
        Check("reported", "raw: the judge's sum of grades, first to last", "; ".join(told(g, 2) for g in graded), True),
    ]


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    course(left, results, [*FORMS], "reward", "share right in practice")
    course(middle, results, [*FORMS], "steps_said", "steps said")
    course(right, results, [*FORMS], "graded", "sum of the judge's grades")


CLAIM = Claim(
    id="prm_rl",
    paper="Setlur et al. 2024, arXiv 2410.08146",
    sentence="With a judge of steps at hand, practice for progress needs fewer samples than practice for answers; sums "
    "of grades are hacked",
    budget=f"{STEPS} steps of 32 problems x 16 rollouts; what the judge learned from, 4,000 solutions and the rules' "
    "word on their steps, is reported beside",
    premise="groups are mixed",
    rule=f"progress reaches the outcome arm's last reward with {FEWER} of its tokens in the mean of seeds; raw "
    f"sums say {LONGER} times as many steps and are right less often",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "Counted before with each grade as the worth of its state and with blanks between steps: FAIL in the second "
        "line alone (progress .86 .93 .83 of the tokens, 1.00 1.07 .99 with the judge's; raw sums 1.01 1.00 1.00 times "
        "as many steps). A judge of steps grades the step behind an error as if nothing had happened (.95 behind .02): "
        "what grades so far make together is what a state is worth now. And idle words held no step that a judge could "
        "be asked about, because a word and the blank before it are one token: steps are lines now, and the start is "
        "taught for 1,500 updates instead of 900, after which it was right .145 of the time.",
        "",
        "The judge of progress holds idle words for wrong (`labels: strict`): then being right so far is near to a "
        "value. The judge whose grades are summed holds them for right, as PRM800K's neutral labels are held.",
        "",
        "Pilots with seed 0 fixed the judges and the start. With values by continuations (2,000 solutions, 8 behind "
        "each step) progress was no quicker than the outcome alone (.66 and .63 right in the last five steps "
        "of practice).",
    ),
)
