"""Does practice teach what could not be done before? pass@k up to 256, before and after, from two starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, told
from schoolhouse.claims.harness.figures import course
from schoolhouse.claims.harness.models import GOALS, countdowns, only_tiny, practice, reader

MANY = Evaluation(task=GOALS.task, problems=50, samples=256, max_new_tokens=GOALS.max_new_tokens)
SECOND_THOUGHTS = {
    "said": "tokens",
    "reflects": "share that says a word of second thoughts (again, check, ...)",
    "reworks": "share that works something twice",
}
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
PAIRS = (("taught", "taught_practised"), ("base", "base_practised"))
RISE, LEAST = 0.05, 0.02
STEPS, RATE = 70, 3e-4


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    taught, base, exams = countdowns(seed), reader(seed), {"exam": GOALS, "many": MANY}

    def practised(start: Step) -> Step:
        long = {"steps": STEPS, "save_every": STEPS, "optimizer.learning_rate": RATE}
        return practice(
            start, seed, preset="grpo", task=GOALS.task, **{"sampling.max_new_tokens": GOALS.max_new_tokens}, **long
        )

    return {
        "taught": Arm(taught, exams, "fine-tuned on worked countdowns"),
        "taught_practised": Arm(practised(taught), exams, "and practised"),
        "base": Arm(base, exams, "has read worked countdowns, never fine-tuned"),
        "base_practised": Arm(practised(base), exams, "and practised"),
    }


def judge(results: Results) -> Sequence[Check]:
    begun = results.each("base", "pass_at_1", "many")
    checks = [Check("premise", f"base: pass@1 of {LEAST} or more, each seed", told(begun), min(begun) >= LEAST)]
    for before, after in PAIRS:
        one = results.gains(before, after, "pass_at_1", "many")
        text = f"{after}: pass@1 rises by more than {RISE}, each seed"
        checks.append(Check("must hold", text, told(one, sign=True), min(one) > RISE))
    for before, after in PAIRS:
        one, many = (fmean(results.gains(before, after, f"pass_at_{k}", "many")) for k in (1, KS[-1]))
        text = f"{after}: pass@{KS[-1]} rises less than pass@1, mean of seeds"
        checks.append(Check("must hold", text, f"{many:+.3f} against {one:+.3f}", many < one))
    for before, after in PAIRS:
        for k in (4, 16, 64, 256):
            pair = [told(results.each(arm, f"pass_at_{k}", "many")) for arm in (before, after)]
            checks.append(Check("reported", f"{before} -> {after}: pass@{k}", " -> ".join(pair), True))
    for _, arm in PAIRS:
        for name, what in SECOND_THOUGHTS.items():
            found = ", ".join(
                f"{kind} {_first_and_last(results, arm, f'{name}_{kind}')}" for kind in ("right", "wrong")
            )
            checks.append(
                Check("reported", f"{arm}, first five steps -> last five, mean of seeds: {what}", found, True)
            )
    return checks


def _first_and_last(results: Results, arm: str, metric: str) -> str:
    rows = results.course(arm, metric)
    first, last = (fmean(fmean(row[part]) for row in rows) for part in (slice(5), slice(-5, None)))
    return f"{first:.2f} -> {last:.2f}"


def draw(results: Results, picture: Any) -> None:
    *two, third = picture.subplots(1, 3)
    for kind in ("right", "wrong"):
        course(third, results, ["taught_practised"], f"reflects_{kind}", "share of thoughts that look back")
    third.legend(third.get_legend_handles_labels()[0], ["right answers", "wrong answers"], fontsize=8)
    third.set(title="taught_practised")
    for axes, pair in zip(two, PAIRS, strict=True):
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
    sentence="Practice makes the likely surer: pass@1 rises, what 256 tries reach rises less or falls",
    budget=f"{STEPS} steps of 32 problems x 16 rollouts of at most {GOALS.max_new_tokens} tokens; exams of {MANY.problems} "
    "problems x 256 answers",
    premise=f"the base solves {LEAST} at first try: practice needs something to make likelier",
    rule=f"pass@1 rises by more than {RISE} in every seed from either start, and pass@256 by less than pass@1 in the "
    "mean of seeds; whether it rises at all is reported, not judged: papers disagree",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "A first counted run used chains: FAIL. Ten possible answers made pass@64 1 everywhere, and its base, at "
        "chance (.10), stayed there. Countdowns cannot be guessed. A pilot of 45 steps with seed 0 fixed the number of "
        "steps: pass@1 rose by .057 and .087.",
        "",
        "Counted on countdowns before with fine-tuned starts of 1,500 updates: FAIL in one line. Seed 1's had never "
        "learned to compare what a try gives with the goal (right .07 of the time), and practice did not teach it "
        "that (+.027). Now they are shown 2,500.",
        "",
        "pass@256 is 1 before practice from either start, so it cannot rise, and nothing here was out of reach: what "
        "the curves show is where they cross, at 8 tries after fine-tuning and between 4 and 8 from the base, which "
        "solves .91 with 16 tries before practice and .82 after it. The exam's 50 problems x 256 answers are the "
        "first 50 of its 200, and easier.",
        "",
        "Thoughts grow where they fail: wrong answers from 106 tokens to 159, and nearly all work something twice in "
        "the end (.74 to .93); right ones get shorter (49 to 44) and look back less often (.76 to .68).",
    ),
)
