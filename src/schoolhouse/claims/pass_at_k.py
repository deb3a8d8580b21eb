"""Does RL teach what was impossible before? pass@k up to 256, before and after, from two starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_metric
from schoolhouse.claims.harness.models import COUNTDOWNS, base_model, countdown_model, grpo_step, require_tiny

MANY_SAMPLES = Evaluation(task=COUNTDOWNS.task, problems=50, samples=256, max_new_tokens=COUNTDOWNS.max_new_tokens)
REFLECTION_METRICS = {
    "completion_tokens": "tokens",
    "reflection_rate": "share with a word of reflection (again, check, ...)",
    "recheck_rate": "share that computes something twice",
}
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
PAIRS = (("sft", "sft_rl"), ("base", "base_rl"))
MIN_GAIN, MIN_BASE_ACCURACY = 0.05, 0.02
STEPS = 70
CONFIG: Mapping[str, Any] = {
    "preset": "grpo",
    "task": COUNTDOWNS.task,
    "sampling.max_new_tokens": COUNTDOWNS.max_new_tokens,
    "steps": STEPS,
    "save_every": STEPS,
    "optimizer.learning_rate": 3e-4,
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    sft, base, measures = countdown_model(seed), base_model(seed), {"eval": COUNTDOWNS, "many": MANY_SAMPLES}

    def trained(start: Step) -> Step:
        return grpo_step(start, seed, CONFIG)

    return {
        "sft": Arm(sft, measures, "fine-tuned on demonstrations of countdowns"),
        "sft_rl": Arm(trained(sft), measures, "and trained with RL"),
        "base": Arm(base, measures, "pretrained on text with countdowns, never fine-tuned"),
        "base_rl": Arm(trained(base), measures, "and trained with RL"),
    }


def check(results: Results) -> Sequence[Check]:
    base = results.by_seed("base", "pass_at_1", "many")
    checks = [
        Check(
            "premise",
            f"base: pass@1 of {MIN_BASE_ACCURACY} or more, each seed",
            format_values(base),
            min(base) >= MIN_BASE_ACCURACY,
        )
    ]
    for before, after in PAIRS:
        gains = results.gains(before, after, "pass_at_1", "many")
        text = f"{after}: pass@1 rises by more than {MIN_GAIN}, each seed"
        checks.append(Check("must hold", text, format_values(gains, sign=True), min(gains) > MIN_GAIN))
    for before, after in PAIRS:
        one, many = (fmean(results.gains(before, after, f"pass_at_{k}", "many")) for k in (1, KS[-1]))
        text = f"{after}: pass@{KS[-1]} rises less than pass@1, mean of seeds"
        checks.append(Check("must hold", text, f"{many:+.3f} against {one:+.3f}", many < one))
    for before, after in PAIRS:
        for k in (4, 16, 64, 256):
            pair = [format_values(results.by_seed(arm, f"pass_at_{k}", "many")) for arm in (before, after)]
            checks.append(Check("reported", f"{before} -> {after}: pass@{k}", " -> ".join(pair), True))
    for _, arm in PAIRS:
        for metric, about in REFLECTION_METRICS.items():
            found = ", ".join(
                f"{kind} {_first_and_last(results, arm, f'{metric}_{kind}')}" for kind in ("correct", "incorrect")
            )
            text = f"{arm}, first five steps -> last five, mean of seeds: {about}"
            checks.append(Check("reported", text, found, True))
    return checks


def _first_and_last(results: Results, arm: str, metric: str) -> str:
    curves = results.curves(arm, metric)
    first, last = (fmean(fmean(curve[part]) for curve in curves) for part in (slice(5), slice(-5, None)))
    return f"{first:.2f} -> {last:.2f}"


def draw(results: Results, picture: Any) -> None:
    *pass_axes, reflection_axes = picture.subplots(1, 3)
    for kind in ("correct", "incorrect"):
        plot_metric(reflection_axes, results, ["sft_rl"], f"reflection_rate_{kind}", "share of thoughts that reflect")
    handles = reflection_axes.get_legend_handles_labels()[0]
    reflection_axes.legend(handles, ["correct answers", "wrong answers"], fontsize=8)
    reflection_axes.set(title="sft_rl")
    for axes, pair in zip(pass_axes, PAIRS, strict=True):
        for name in pair:
            if name not in results.arms:
                continue
            means = [results.mean(name, f"pass_at_{k}", "many") for k in KS]
            (line,) = axes.plot(KS, means, "o-", label=name)
            for seed in range(len(results.seeds)):
                curve = [results.by_seed(name, f"pass_at_{k}", "many")[seed] for k in KS]
                axes.plot(KS, curve, color=line.get_color(), linewidth=0.5)
        axes.set(xscale="log", xlabel="k", ylabel="pass@k", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()


CLAIM = Claim(
    id="pass_at_k",
    paper="Yue et al. 2025, arXiv 2504.13837",
    sentence="RL sharpens the distribution: pass@1 rises, while pass@256 rises less or falls",
    budget=f"{STEPS} steps of 32 problems x 16 rollouts of at most {COUNTDOWNS.max_new_tokens} tokens; evaluations of "
    f"{MANY_SAMPLES.problems} problems x {MANY_SAMPLES.samples} answers",
    premise=f"the base solves {MIN_BASE_ACCURACY} at the first attempt: RL needs some correct answers to reinforce",
    rule=f"pass@1 rises by more than {MIN_GAIN} in every seed from either start, and pass@256 by less than pass@1 in "
    "the mean of seeds; whether it rises at all is reported only: papers disagree",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "A first counted run used chains: FAIL. Ten possible answers made pass@64 1 everywhere, and its base, at "
        "chance (.10), stayed there. Countdowns cannot be guessed. A pilot of 45 steps with seed 0 fixed the number of "
        "steps: pass@1 rose by .057 and .087.",
        "",
        "Counted on countdowns before, with fine-tuned starts of 1,500 updates: FAIL in one line. Seed 1's start had "
        "never learned to compare a result with the goal (correct .07 of the time), and RL did not teach it that "
        "(+.027). Now they have 2,500.",
        "",
        "pass@256 is 1 before RL from either start, so it cannot rise, and no problem was out of reach. The curves "
        "show where they cross: at 8 attempts after fine-tuning and between 4 and 8 from the base, which solves .91 "
        "with 16 attempts before RL and .82 after it. The 50 problems x 256 answers are the first 50 of the "
        "evaluation's 200, and easier.",
        "",
        "Thoughts grow where they fail: wrong answers from 106 tokens to 159, and nearly all compute something twice "
        "in the end (.74 to .93). Those of correct answers get shorter (49 to 44) and reflect less often (.76 to .68).",
    ),
)
