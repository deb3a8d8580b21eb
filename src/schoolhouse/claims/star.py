"""STaR: a model that was shown a few short sums teaches itself longer ones, faster where it may look at the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, told
from schoolhouse.claims.harness.figures import bars
from schoolhouse.claims.harness.models import only_tiny

TASK = "school:longhand?digits=1-5"
SUMS = Evaluation(task=TASK, problems=200, samples=1, max_new_tokens=150, temperature=0)
DIGITS = range(1, 6)
LOOPS, UPDATES, RATE = 8, 16, 5e-4
FINAL, LESS, HALF = 0.85, 0.10, 0.5
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "star": ("STaR", {}),
    "no_rationalization": ("failed problems are not tried again with the answer", {"rationalize": False}),
    "no_filter": ("wrong answers are learned too", {"keep": "all", "rationalize": False}),
    "keep_hint": ("what was said with the answer in sight is learned with it in sight", {"keep_hint": True}),
}


def base() -> Step:
    """A model that has read pieces of long sums, and was asked for columns of them: never for a sum, nor for a whole
    one. One for all seeds, as the paper has one."""
    shape = {
        "hidden_size": 128,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 32,
        "intermediate_size": 384,
        "max_seq_len": 256,
    }
    text = {"task": "school:longhand", "seed": 0, "model": shape, "vocab_size": 300, "steps": 3000, "save_every": 1000}
    talk = {"task": "school:facts+chain+column?steps=2-4&each=6&styles=full=100", "seed": 0, "steps": 1500}
    book = Step("pretrain", {**text, "optimizer.learning_rate": 3e-3})
    return Step("sft", {"model": book, **talk, "optimizer.learning_rate": 2e-3, "save_every": 500})


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    config: dict[str, Any] = {"model": base(), "task": TASK, "seed": seed, "loops": LOOPS, "prompts_per_loop": 400}
    config |= {
        "demos_task": "school:longhand?digits=1-2&styles=full=100",
        "num_demos": 200,
        "sampling.max_new_tokens": 150,
    }
    config |= {"updates_per_loop": UPDATES, "optimizer.learning_rate": RATE}
    asked = {"exam": SUMS}
    direct = {"model": base(), "task": f"{TASK}&styles=no_cot=100", "seed": seed, "optimizer.learning_rate": RATE}
    steps = sum(round(UPDATES * 1.1**loop) for loop in range(LOOPS + 1))
    return {
        "base": Arm(base(), asked, "has seen pieces of sums, and none as a whole"),
        **{name: Arm(Step("star", {**config, **keys}), asked, about) for name, (about, keys) in ARMS.items()},
        "direct": Arm(Step("sft", {**direct, "steps": steps}), asked, "answers without thoughts, as many updates"),
    }


def by_digits(results: Results, arm: str) -> list[list[list[float]]]:
    """Share right at first try for each number of digits, loop by loop, for each seed."""
    rows = [[line for line in results.arms[arm][seed].metrics if "reward_parts" in line] for seed in results.seeds]
    return [[[line["reward_parts"].get(f"digits {n}", 0.0) for line in lines] for n in DIGITS] for lines in rows]


def reached(course: Sequence[float]) -> int:
    """The first loop with half of the sums right; one behind the last where none has."""
    return next((loop for loop, share in enumerate(course, 1) if share >= HALF), len(course) + 1)


def there_first(results: Results) -> list[tuple[list[float], list[float], int]]:
    """Shares right at first try of `star` and of `hint_stays`, loop by loop, and the loop in which star is there."""
    pairs = zip(results.course("star", "reward"), results.course("hint_stays", "reward"), strict=True)
    return [
        (star, stays, next((at for at, share in enumerate(star) if share >= FINAL), len(star) - 1))
        for star, stays in pairs
    ]


def judge(results: Results) -> Sequence[Check]:
    final = results.each("star")
    checks = [
        Check("must hold", f"star: {FINAL} or more on 1 to 5 digits, each seed", told(final), min(final) >= FINAL)
    ]
    loops = {arm: [[reached(course) for course in seed] for seed in by_digits(results, arm)] for arm in ARMS}
    there = all(seed[2] <= LOOPS for arm in ("star", "no_rationalization") for seed in loops[arm])
    follows = all(a <= b for seed in loops["no_rationalization"] for a, b in pairwise(seed))
    staged = there and follows and all(seed[2] < seed[-1] for seed in loops["no_rationalization"])
    shown = "; ".join(" ".join(map(str, seed)) for seed in loops["no_rationalization"])
    checks.append(
        Check(
            "must hold",
            "no_rationalization: longer sums follow shorter ones, 5 digits in a later loop than 3, each seed",
            shown,
            staged,
        )
    )
    shown = "; ".join(" ".join(map(str, seed)) for seed in loops["hint_stays"])
    checks.append(
        Check("reported", "hint_stays: the loop in which half are right, 1 to 5 digits, each seed", shown, True)
    )
    spread = {arm: [seed[-1] - seed[1] for seed in loops[arm]] for arm in ("star", "no_rationalization")}
    found = f"{told(spread['star'], 0)} against {told(spread['no_rationalization'], 0)} loops from 2 digits to 5"
    closer = there and fmean(spread["star"]) < fmean(spread["no_rationalization"])
    checks.append(Check("must hold", "star: they come closer together, mean of seeds", found, closer))
    for arm, other in (("no_filter", "no_rationalization"), ("direct", "star")):
        apart = results.gains(other, arm)
        text = f"{arm}: at least {LESS} below {other}, mean of seeds"
        checks.append(Check("must fail", text, told(apart, sign=True), fmean(apart) <= -LESS))
    apart = [stays[loop] - drops[loop] for drops, stays, loop in there_first(results)]
    text = f"hint_stays: at least {LESS} below in the loop where star is there, mean of seeds"
    checks.append(Check("must fail", text, told(apart, sign=True), fmean(apart) <= -LESS))
    for arm in ARMS:
        last = [[course[-1] for course in seed] for seed in by_digits(results, arm)]
        means = [fmean(seed[n] for seed in last) for n in range(len(DIGITS))]
        checks.append(Check("reported", f"{arm}: 1 to 5 digits in the last loop, mean of seeds", told(means, 2), True))
    return checks


def draw(results: Results, picture: Any) -> None:
    axes = picture.subplots(1, 3)
    for place, arm in zip(axes, ("star", "no_rationalization"), strict=False):
        if arm in results.arms:
            courses = by_digits(results, arm)
            for n in range(len(DIGITS)):
                points = range(min(len(seed[n]) for seed in courses))
                place.plot([i + 1 for i in points], [fmean(seed[n][i] for seed in courses) for i in points], "o-")
        place.set(title=arm, xlabel="loop", ylabel="share right at first try", ylim=(0, 1.02))
        place.legend([f"{n} digits" for n in DIGITS], fontsize=8)
        place.grid(alpha=0.3)
    bars(axes[2], results, [*ARMS, "direct"])


CLAIM = Claim(
    id="star",
    paper="Zelikman et al. 2022, arXiv 2203.14465, section 4.2",
    sentence="Learning from one's own right thoughts leads from 200 short sums to long ones, with hints all at once",
    budget=f"{LOOPS} loops of 400 problems, {UPDATES} updates and a tenth more with each; as many updates for `direct`",
    premise="none: what the base can do is the claim's own matter, and shown",
    rule=f"star has {FINAL} on 1 to 5 digits in every seed; without rationalization longer sums follow shorter ones, "
    f"5 digits in a later loop than 3, with it they come closer together; direct answers are {LESS} below, no filter "
    f"{LESS} below the arm that differs in that alone, a hint that stays {LESS} below in the loop in which star is "
    "there",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "The base was asked for columns of long sums, one to four in a row and never for a whole sum, and was never "
        "asked what a sum is; 200 worked sums of one and two digits are all it is shown of those. So what the loops "
        "find is to go on until nothing is left. Four bases that knew less found no third column (docs/lab.md).",
        "",
        "A hint that stays is judged in the middle: later it is made good by sums that are solved without a hint, "
        "as in the arm without rationalization.",
        "",
        "Counted twice before, with six loops of 60 updates. PASS by a rule that took sums of all lengths in one loop "
        "for stages, while arms without rationalization were shown the 200 examples with hints too, and a last column "
        "of a sum of two digits could be one that the exam asks for. Then, mended and asked for 5 digits in a later "
        "loop than 3: FAIL in three lines. Half of the sums of 1 to 5 digits were right in loops 1 1 2 2 2 in every "
        "seed with hints, without, and where the hint stays: in 60 updates on what is right of 3 and 4 digits 5 are "
        "learned too. A pilot with seed 0 fixed 16 updates and 8 loops (25 updates: 1 1 2 2 3 without hints, 1 1 3 2 "
        "2 with).",
    ),
)
