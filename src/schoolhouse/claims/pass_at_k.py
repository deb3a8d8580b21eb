"""Does RL teach a model to solve new problems? The claim measures pass@k before and after RL, up to k = 256.

The two start models are a fine-tuned model and a base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_metric
from schoolhouse.claims.harness.models import COUNTDOWNS, base_model, countdown_model, grpo_step, require_tiny

MANY_SAMPLES = Evaluation(task=COUNTDOWNS.task, problems=50, samples=256, max_new_tokens=COUNTDOWNS.max_new_tokens)
REFLECTION_METRICS = {
    "completion_tokens": "tokens of a completion",
    "reflection_rate": "share of completions with a word of reflection (again, check, ...)",
    "recheck_rate": "share of completions that compute something twice",
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
        "sft": Arm(sft, measures, "fine-tuned on demonstrations of countdowns (reach a goal from three numbers)"),
        "sft_rl": Arm(trained(sft), measures, "the arm sft, then trained with RL"),
        "base": Arm(base, measures, "pretrained on text with countdowns, but never fine-tuned"),
        "base_rl": Arm(trained(base), measures, "the arm base, then trained with RL"),
    }


def check(results: Results) -> Sequence[Check]:
    base = results.by_seed("base", "pass_at_1", "many")
    checks = [
        Check(
            "premise",
            f"pass@1 of the base is {MIN_BASE_ACCURACY} or more in each seed",
            format_values(base),
            min(base) >= MIN_BASE_ACCURACY,
        )
    ]
    for before, after in PAIRS:
        gains = results.gains(before, after, "pass_at_1", "many")
        text = f"pass@1 of {after} is more than {MIN_GAIN} above its start in each seed"
        checks.append(Check("must hold", text, format_values(gains, sign=True), min(gains) > MIN_GAIN))
    for before, after in PAIRS:
        one, many = (fmean(results.gains(before, after, f"pass_at_{k}", "many")) for k in (1, KS[-1]))
        text = f"in {after}, pass@{KS[-1]} rises less than pass@1, in the mean of seeds"
        checks.append(Check("must hold", text, f"pass@{KS[-1]} {many:+.3f}, pass@1 {one:+.3f}", many < one))
    for before, after in PAIRS:
        for k in (4, 16, 64, 256):
            pair = [format_values(results.by_seed(arm, f"pass_at_{k}", "many")) for arm in (before, after)]
            checks.append(
                Check(
                    "reported",
                    f"pass@{k} before and after RL ({before} -> {after})",
                    "before RL: {}; after RL: {}".format(*pair),
                    True,
                )
            )
    for _, arm in PAIRS:
        for metric, about in REFLECTION_METRICS.items():
            found = ", ".join(
                f"{kind} answers {_first_and_last(results, arm, f'{metric}_{kind}')}"
                for kind in ("correct", "incorrect")
            )
            text = f"{arm}, mean of the first five steps -> mean of the last five steps: {about}"
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
    sentence="RL sharpens the distribution of answers: pass@1 rises, while pass@256 rises less or falls",
    budget=f"{STEPS} steps of 32 problems x 16 rollouts of at most {COUNTDOWNS.max_new_tokens} tokens; the "
    f"evaluation has {MANY_SAMPLES.problems} problems x {MANY_SAMPLES.samples} answers",
    premise=f"the base model's pass@1 is at least {MIN_BASE_ACCURACY}, because RL needs some correct answers to "
    "reinforce",
    rule=f"with both start models, RL raises pass@1 by more than {MIN_GAIN} in every seed. In the mean of seeds, "
    "pass@256 rises less than pass@1. Whether pass@256 rises at all is only reported, because papers disagree "
    "about pass@256.",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "A first official run used chains (chains of small sums), and its verdict was FAIL. A chain has only ten "
        "possible answers, so pass@64 was 1 in every arm. The base model of the first official run was as good as "
        "random guessing (.10 pass@1), and RL did not improve it. Answers to countdowns (reach a goal from three "
        "numbers) cannot be guessed. A pilot of 45 steps with seed 0 was used to choose the number of steps. In "
        "the pilot, pass@1 rose by .057 and .087 with the two start models.",
        "",
        "In an earlier official run on countdowns, the fine-tuned start models were trained for 1,500 updates. "
        "The verdict of the earlier run on countdowns was FAIL, because one check failed. The start model of "
        "seed 1 had not learned to compare a result with the goal (.07 pass@1), and RL did not teach this "
        "comparison (pass@1 rose by only .027). The fine-tuned start models are now trained for 2,500 updates.",
        "",
        "Before RL, pass@256 is 1 for both start models. So pass@256 cannot rise, and every problem could already "
        "be solved before RL. The curves of pass@k before and after RL cross at k = 8 for the fine-tuned start "
        "model, and between k = 4 and k = 8 for the base model. With 16 attempts, the base model solves .91 of "
        "the problems before RL and .82 after RL. The 50 problems with 256 answers each are the first 50 of the "
        "200 evaluation problems, and these 50 problems are easier than the other 150.",
        "",
        "In the arm sft_rl, wrong answers get longer during RL (from 106 to 159 tokens). The share of wrong "
        "answers that compute something twice rises from .74 to .93. Correct answers get shorter (from 49 to 44 "
        "tokens), and the share of correct answers with a word of reflection (again, check, ...) falls from .76 "
        "to .68.",
    ),
)
