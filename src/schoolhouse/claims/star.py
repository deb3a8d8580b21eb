"""STaR: a model that knows a few short sums teaches itself longer sums. With hints, the model learns faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_bars
from schoolhouse.claims.harness.models import SMALL_MODEL, require_tiny

TASK = "school:longhand?digits=1-5"
SUMS = Evaluation(task=TASK, problems=200, samples=1, max_new_tokens=150, temperature=0)
DIGITS = range(1, 6)
LOOPS, UPDATES, LEARNING_RATE = 8, 16, 5e-4
MIN_ACCURACY, MIN_LOSS, HALF = 0.85, 0.10, 0.5
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "star": ("STaR with rationalization (a hint for failed problems)", {}),
    "no_rationalization": ("STaR without a second try with a hint for failed problems", {"rationalize": False}),
    "no_filter": ("STaR without hints, which also learns from wrong answers", {"keep": "all", "rationalize": False}),
    "keep_hint": ("STaR that keeps the hint in the prompt when it learns from a thought", {"keep_hint": True}),
}


def base() -> Step:
    """A model that was pretrained on pieces of long sums and fine-tuned on columns of sums, never on a whole sum.

    All seeds share the same base model, as in the paper.
    """
    corpus = {"task": "school:longhand", "seed": 0, "model": SMALL_MODEL, "vocab_size": 300}
    pretrained = Step("pretrain", {**corpus, "steps": 3000, "save_every": 1000, "optimizer.learning_rate": 3e-3})
    return Step(
        "sft",
        {
            "model": pretrained,
            "task": "school:facts+chain+column?steps=2-4&each=6&styles=full=100",
            "seed": 0,
            "steps": 1500,
            "optimizer.learning_rate": 2e-3,
            "save_every": 500,
        },
    )


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    common: dict[str, Any] = {"model": base(), "seed": seed, "optimizer.learning_rate": LEARNING_RATE}
    star = {
        "task": TASK,
        "loops": LOOPS,
        "prompts_per_loop": 400,
        "demos_task": "school:longhand?digits=1-2&styles=full=100",
        "num_demos": 200,
        "sampling.max_new_tokens": 150,
        "updates_per_loop": UPDATES,
    }
    direct = {"task": f"{TASK}&styles=no_cot=100", "steps": sum(round(UPDATES * 1.1**n) for n in range(LOOPS + 1))}
    measures = {"eval": SUMS}
    return {
        "base": Arm(base(), measures, "has seen parts of sums, but no whole sum"),
        **{
            name: Arm(Step("star", {**common, **star, **changes}), measures, about)
            for name, (about, changes) in ARMS.items()
        },
        "direct": Arm(
            Step("sft", {**common, **direct}),
            measures,
            "fine-tuned on answers without thoughts, with the same number of updates",
        ),
    }


def accuracy_by_digits(results: Results, arm: str) -> list[list[list[float]]]:
    """For each seed and each number of digits, the accuracy of first attempts in each loop."""
    rows = [[line for line in results.arms[arm][seed].metrics if "reward_parts" in line] for seed in results.seeds]
    return [[[line["reward_parts"].get(f"digits {n}", 0.0) for line in lines] for n in DIGITS] for lines in rows]


def first_loop(accuracies: Sequence[float]) -> int:
    """The first loop in which half of the sums are correct; the number of loops + 1 if no loop reaches one half."""
    return next((loop for loop, share in enumerate(accuracies, 1) if share >= HALF), len(accuracies) + 1)


def hint_losses(results: Results) -> list[float]:
    """The accuracy of `keep_hint` minus the accuracy of `star`, in the loop in which `star` reaches MIN_ACCURACY.

    The accuracy is that of the first attempts (without a hint) in the loop.
    """
    losses = []
    for star, keep_hint in zip(results.curves("star", "reward"), results.curves("keep_hint", "reward"), strict=True):
        loop = next((loop for loop, share in enumerate(star) if share >= MIN_ACCURACY), len(star) - 1)
        losses.append(keep_hint[loop] - star[loop])
    return losses


def check(results: Results) -> Sequence[Check]:
    accuracy = results.by_seed("star")
    loops = {arm: [[first_loop(curve) for curve in seed] for seed in accuracy_by_digits(results, arm)] for arm in ARMS}
    unaided = loops["no_rationalization"]
    learned = all(seed[2] <= LOOPS for arm in ("star", "no_rationalization") for seed in loops[arm])
    ordered = all(a <= b for seed in unaided for a, b in pairwise(seed))
    spread = {arm: [seed[-1] - seed[1] for seed in loops[arm]] for arm in ("star", "no_rationalization")}
    checks = [
        Check(
            "must hold",
            f"the accuracy of `star` on sums of 1 to 5 digits is {MIN_ACCURACY} or more in each seed",
            format_values(accuracy),
            min(accuracy) >= MIN_ACCURACY,
        ),
        Check(
            "must hold",
            "no_rationalization learns longer sums after shorter ones, and 5 digits in a later loop than 3 (first "
            "loop with half correct, for 1 to 5 digits, each seed)",
            _loops_text(unaided),
            learned and ordered and all(seed[2] < seed[-1] for seed in unaided),
        ),
        Check(
            "reported",
            "keep_hint: the first loop with half of the sums correct, for 1 to 5 digits, each seed",
            _loops_text(loops["keep_hint"]),
            True,
        ),
        Check(
            "must hold",
            "after learning 2 digits, `star` needs fewer loops to learn 5 digits than no_rationalization needs, "
            "in the mean of seeds",
            f"star {format_values(spread['star'], 0)}, "
            f"no_rationalization {format_values(spread['no_rationalization'], 0)} loops",
            learned and fmean(spread["star"]) < fmean(spread["no_rationalization"]),
        ),
    ]
    for arm, other in (("no_filter", "no_rationalization"), ("direct", "star")):
        losses = results.gains(other, arm)
        text = f"the accuracy of `{arm}` is at least {MIN_LOSS} below `{other}`, in the mean of seeds"
        checks.append(Check("must fail", text, format_values(losses, sign=True), fmean(losses) <= -MIN_LOSS))
    losses = hint_losses(results)
    text = f"in the loop where `star` reaches its goal, `keep_hint` is {MIN_LOSS} or more below `star`, mean of seeds"
    checks.append(Check("must fail", text, format_values(losses, sign=True), fmean(losses) <= -MIN_LOSS))
    for arm in ARMS:
        last = [[curve[-1] for curve in seed] for seed in accuracy_by_digits(results, arm)]
        means = [fmean(seed[n] for seed in last) for n in range(len(DIGITS))]
        text = f"accuracy of `{arm}` in the last loop for 1, 2, 3, 4 and 5 digits, mean of seeds"
        checks.append(Check("reported", text, format_values(means, 2), True))
    return checks


def _loops_text(loops: Sequence[Sequence[int]]) -> str:
    return "; ".join(f"loops in seed {at}: {' '.join(map(str, seed))}" for at, seed in enumerate(loops))


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    for axes, arm in ((left, "star"), (middle, "no_rationalization")):
        if arm in results.arms:
            by_seed = accuracy_by_digits(results, arm)
            for n in range(len(DIGITS)):
                loops = range(min(len(seed[n]) for seed in by_seed))
                axes.plot([i + 1 for i in loops], [fmean(seed[n][i] for seed in by_seed) for i in loops], "o-")
        axes.set(title=arm, xlabel="loop", ylabel="accuracy at the first attempt", ylim=(0, 1.02))
        axes.legend([f"{n} digits" for n in DIGITS], fontsize=8)
        axes.grid(alpha=0.3)
    plot_bars(right, results, [*ARMS, "direct"])


CLAIM = Claim(
    id="star",
    paper="Zelikman et al. 2022, arXiv 2203.14465, section 4.2",
    sentence="A model that saw demonstrations of 200 short sums learns long sums from its own correct thoughts; "
    "with hints, the model learns all lengths at the same time",
    budget=f"{LOOPS} loops of 400 problems. The first loop has {UPDATES} updates, and each further loop has a "
    "tenth more updates than the loop before. The arm `direct` has the same total number of updates.",
    premise="none; the ability of the base model is part of the claim and is shown in the table",
    rule=f"in every seed, the arm `star` reaches an accuracy of {MIN_ACCURACY} on sums of 1 to 5 digits. Without "
    "rationalization (solving again with the answer as a hint), the model learns longer sums after shorter ones, "
    "and sums of 5 digits in a later loop than sums of 3 digits. With rationalization, there are fewer loops "
    f"between learning short sums and learning long sums. The accuracy of the arm `direct` is at least {MIN_LOSS} "
    f"below the accuracy of `star`. The accuracy of the arm `no_filter` is at least {MIN_LOSS} below the accuracy "
    "of `no_rationalization`. The arms `no_filter` and `no_rationalization` differ only in the filter (whether "
    "wrong answers are removed from the training data). In the loop in which `star` reaches its goal, the "
    f"accuracy of `keep_hint` is at least {MIN_LOSS} below the accuracy of `star`.",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "The base model was fine-tuned on parts of long sums; each part has one to four neighbouring columns "
        "(digit positions). The base model never saw a whole sum or a question for the result of a sum. The base "
        "model's only examples of whole sums are 200 demonstrations with one and two digits. So the model has to "
        "discover in the loops that a sum continues until no digit is left. Four base models with less knowledge "
        "never learned to continue with the third column (docs/lab.md).",
        "",
        "The arm `keep_hint` (hints stay in the training prompts) and the arm `star` (hints are removed) are "
        "compared in the middle of training. At the end of training, the arm `keep_hint` (hints stay in the "
        "training prompts) is as accurate as the arm `star` (hints are removed). In later loops, the arm "
        "`keep_hint` learns from sums that the model solves without a hint, and the arm `no_rationalization` (no "
        "hints) does so too.",
        "",
        "There were two earlier official runs, each with six loops of 60 updates. The first run had the verdict "
        "PASS, but the rule was wrong: a model that learned all lengths in one loop was also counted as a model "
        "that learns in stages. In the first run, arms without rationalization had hints in their 200 "
        "demonstrations, and the last column of a two-digit sum could also occur as a column of a sum in the "
        "evaluation. The second run corrected the errors of the first run. The rule of the second run required "
        "that a model learns 5 digits in a later loop than 3 digits. The verdict of the second run was FAIL, "
        "because three checks failed. In every seed of the second run, half of the sums with 1 and 2 digits were "
        "correct for the first time in loop 1, and half of the sums with 3, 4 and 5 digits in loop 2. In the "
        "second run, each length was learned in the same loop with hints, without hints and in the arm "
        "`keep_hint`, because 60 updates on correct sums of 3 and 4 digits also teach 5 digits. A pilot with "
        "seed 0 was used to choose 16 updates and 8 loops. In a pilot with 25 updates, a model without hints "
        "learned 1 and 2 digits in loop 1, 3 and 4 digits in loop 2, and 5 digits in loop 3. In the same pilot, "
        "a model with hints learned 1 and 2 digits in loop 1, 4 and 5 digits in loop 2, and 3 digits in loop 3.",
    ),
)
