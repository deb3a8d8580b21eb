"""What search finds teaches the next model more than what plain sampling finds, if somebody verifies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.chain_reward_models import LENGTH, TASK, generator
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, told
from schoolhouse.claims.harness.figures import bars, course
from schoolhouse.claims.harness.models import only_tiny

LOOPS, LESSONS, STILL = 4, 40, 0.05
SEARCH = f"best_of_n?samples=16&length={LENGTH}&temperature=1&values=exact"
PLAIN = f"sample?length={LENGTH}&temperature=1"
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "engine": ("best of 16 by the task's rules for steps, verified", {"search": SEARCH, "prompts_per_loop": 200}),
    "unsearched": ("plain samples, verified", {"search": PLAIN, "prompts_per_loop": 300}),
    "unverified": ("plain samples, right or wrong", {"search": PLAIN, "prompts_per_loop": 200, "verify": False}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start, exam = generator(seed), {"exam": Evaluation(task=TASK, problems=200, samples=8, max_new_tokens=LENGTH)}
    config = {
        "model": start,
        "task": TASK,
        "seed": seed,
        "loops": LOOPS,
        "max_new_tokens": LENGTH,
        "max_kept_per_loop": LESSONS,
    }
    config |= {"fresh_task": "school:facts"}
    made = {
        name: Arm(Step("expert_iteration", {**config, **keys}), exam, about) for name, (about, keys) in ARMS.items()
    }
    return {"start": Arm(start, exam, "makes the same mistakes again and again"), **made}


def judge(results: Results) -> Sequence[Check]:
    rows = [fmean(at) for at in zip(*results.course("engine", "reward"), strict=True)]
    apart = results.gains("unsearched", "engine")
    still = results.gains("start", "unverified")
    kept = [fmean(row) for arm in ("engine", "unsearched") for row in results.course(arm, "kept")]
    checks = [
        Check("premise", f"{LESSONS} answers learned from in each loop of both", told(kept, 0), min(kept) >= LESSONS),
        Check(
            "must hold",
            "engine: plain samples are right more often after each of 3 loops, mean of seeds",
            told(rows),
            all(b > a for a, b in pairwise(rows)),
        ),
        Check(
            "must hold",
            "engine: above what as many unsearched answers teach, mean of seeds",
            told(apart, sign=True),
            fmean(apart) > 0,
        ),
        Check(
            "must fail",
            f"unverified: at most {STILL} above the start, mean of seeds",
            told(still, sign=True),
            fmean(still) <= STILL,
        ),
    ]
    for arm in ("start", *ARMS):
        shown = told(results.each(arm, "pass_at_8"))
        checks.append(Check("reported", f"{arm}: pass@8, where a model that narrows loses", shown, True))
    return checks


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    for arm in ARMS:
        if arm in results.arms:
            rows = results.course(arm, "reward")
            left.plot(range(len(rows[0])), [fmean(at) for at in zip(*rows, strict=True)], "o-", label=arm)
    left.set(xlabel="loops done", ylabel="plain samples right", ylim=(0, 1.02))
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    course(middle, results, [*ARMS], "searched_right", "right in search")
    bars(right, results, ["start", *ARMS])


CLAIM = Claim(
    id="expert_iteration",
    paper="Anthony et al. 2017, arXiv 1705.08439; Singh et al. 2023, arXiv 2312.06585",
    sentence="Search finds what plain sampling does not, and learning it makes plain sampling better, loop after loop",
    budget=f"{LOOPS} loops; {LESSONS} more answers and 150 updates in each, from the same base, a fifth of it fresh",
    premise="all compared loops have as many answers to learn from",
    rule="in the mean of seeds plain samples of the engine are right more often after each of the first three, and in "
    "the end more often than after as many unsearched answers; learning from unverified samples brings no more than "
    f"{STILL}",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "The search is sixteen tries at a problem, of which the rules keep a right one, against one try: what it "
        "finds are problems that one try misses. `coverage` was 1 in the counted run whatever happened, as chains "
        "have ten answers; pass@8 tells narrowing: .82 .81 .80 at the start, .98 .98 .99 with the engine, .46 .46 .55 "
        "unverified.",
    ),
)
