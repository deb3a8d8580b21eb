"""The later stages of the R1 pipeline: rejection sampling and distillation of correct answers in one language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_bars
from schoolhouse.claims.harness.models import CHAINS_OF_4, TWO_LANGUAGES, chain_model, require_tiny, signal_check
from schoolhouse.claims.language import TARGET, ScriptUse, consistent_step

STEPS, ROLLOUTS_PER_STEP = 60, 32 * 16
MIN_GAIN, MIN_SHARE_OF_TEACHER, MIN_SMALL_START = 0.15, 0.9, 0.15
STUDENTS = ("small_distilled", "small_rl")


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start = chain_model(seed, languages=TWO_LANGUAGES)
    small_start = chain_model(seed, languages=TWO_LANGUAGES, small=True)
    base = start.config["model"]
    teacher = consistent_step(start, seed, STEPS)
    script_use = ScriptUse(task=CHAINS_OF_4.task, problems=100, samples=8, max_new_tokens=CHAINS_OF_4.max_new_tokens)
    measures = {"eval": CHAINS_OF_4, "script_use": script_use}
    config: dict[str, Any] = {
        "teacher": teacher,
        "task": CHAINS_OF_4.task,
        "script": TARGET,
        "sampling.max_new_tokens": CHAINS_OF_4.max_new_tokens,
        "seed": seed,
        "samples_per_prompt": 4,
        "num_prompts": STEPS * ROLLOUTS_PER_STEP // 4,
        "steps": 500,
        "optimizer.learning_rate": 3e-3,
    }
    rejection = Step("rejection_sampling", {**config, "model": base})
    distilled = Step("rejection_sampling", {**config, "model": small_start})
    return {
        "start": Arm(start, measures, "the cold start: fine-tuned on demonstrations of chains in two languages"),
        "teacher": Arm(
            teacher, measures, "the start model, trained by RL with rewards for correct answers and for one language"
        ),
        "rejection": Arm(rejection, measures, "the base model, fine-tuned on the teacher's filtered answers"),
        "small_start": Arm(small_start, measures, "a model of half the width, fine-tuned like the cold start"),
        "small_distilled": Arm(distilled, measures, "small_start, fine-tuned on the teacher's filtered answers"),
        "small_rl": Arm(consistent_step(small_start, seed, STEPS), measures, "small_start, trained with RL"),
    }


def check(results: Results) -> Sequence[Check]:
    counts = [results.arms["rejection"][seed].metrics[0] for seed in results.seeds]
    kept_faults = [row["kept_wrong"] + row["kept_mixed"] for row in counts]
    dropped = [row.get("dropped_mixed", 0) + row.get("dropped_wrong", 0) for row in counts]
    rejection, teacher, start = (results.by_seed(arm) for arm in ("rejection", "teacher", "start"))
    difference = results.difference("small_rl", "small_distilled")
    gains = results.gains("small_rl", "small_distilled")
    distilled_samples, rl_samples = (
        [sum(row.get("rollouts", 0) for row in results.arms[arm][seed].metrics) for seed in results.seeds]
        for arm in STUDENTS
    )
    small_start = results.by_seed("small_start")
    return [
        Check(
            "premise",
            "both small models had the same number of samples in each seed",
            f"samples: small_distilled {format_values(distilled_samples, 0)}, small_rl {format_values(rl_samples, 0)}",
            distilled_samples == rl_samples,
        ),
        Check(
            "premise",
            f"pass@1 of small_start is {MIN_SMALL_START} or more in each seed (with ten possible answers, RL needs "
            "more than chance)",
            format_values(small_start),
            min(small_start) >= MIN_SMALL_START,
        ),
        signal_check(results, "small_rl"),
        Check(
            "must hold",
            "the number of wrong or mixed-language answers that `rejection` keeps is zero",
            format_values(kept_faults, 0),
            not any(kept_faults),
        ),
        Check(
            "reported",
            "number of answers dropped because they are wrong or in two languages, each seed",
            format_values(dropped, 0),
            True,
        ),
        Check(
            "must hold",
            f"pass@1 of `rejection` is at least {MIN_GAIN} above the cold start in each seed",
            f"pass@1: rejection {format_values(rejection)}, cold start {format_values(start)}",
            all(a >= b + MIN_GAIN for a, b in zip(rejection, start, strict=True)),
        ),
        Check(
            "must hold",
            f"pass@1 of `rejection` is at least {MIN_SHARE_OF_TEACHER} of the teacher's pass@1, in the mean of seeds",
            f"pass@1: rejection {format_values(rejection)}, teacher {format_values(teacher)}",
            fmean(rejection) >= MIN_SHARE_OF_TEACHER * fmean(teacher),
        ),
        Check(
            "must hold",
            "pass@1 of small_distilled is above that of small_rl in each seed (difference)",
            format_values(gains, sign=True),
            min(gains) > 0,
        ),
        Check(
            "must hold",
            "the mean difference in pass@1 between small_distilled and small_rl has an interval above 0",
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
            difference.low > 0,
        ),
        *(
            Check(
                "reported",
                f"in {arm}, the share of answers whose thought has words",
                format_values(results.by_seed(arm, "with_words", "script_use")),
                True,
            )
            for arm in STUDENTS
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    names = ["start", "teacher", "rejection", "small_start", "small_distilled", "small_rl"]
    plot_bars(left, results, names)
    plot_bars(right, results, names, "target", "script_use")
    right.set(ylabel=f"share of words in {TARGET}")


CLAIM = Claim(
    id="r1",
    paper="DeepSeek-R1, Guo et al. 2025, arXiv 2501.12948, sections 2.3 and 2.4",
    sentence="A small model learns more from the filtered answers of a model trained with RL than from RL on the "
    "small model itself",
    budget="30,720 answers are sampled for each student, by the teacher or by the student itself",
    premise="both small models have the same number of samples, and the small start model has some correct "
    "answers for its own RL",
    rule="rejection sampling keeps no wrong answer and no answer in two languages. Pass@1 of a base model that is "
    "fine-tuned on the kept answers is at least .15 above the cold start (the fine-tuned start model) and at "
    "least .9 times the teacher's pass@1. Pass@1 of the distilled small model is above pass@1 of the small model "
    "trained with RL in every seed, and the confidence interval of the mean difference is above 0.",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "There were three earlier official runs. In the first run, the small start models had 2,200 updates, and "
        "an empty thought received the full language reward. The verdict of the first run was PASS, but one small "
        "start model was as good as random guessing (.107 pass@1). In the seed with the weak start model, RL only "
        "taught the model to write an empty thought: the share of answers whose thought has words fell from .46 "
        "to .13. So the advantage of distillation over RL in the seed with the weak start model (+.73 pass@1) was "
        "not an effect of distillation. In the second run, an empty thought received no reward, and a new premise "
        "required a start model above chance. The verdict of the second run was INVALID: after 3,300 updates, the "
        "weak start model had .138 pass@1, but the premise requires .15. In the third run, the start models had "
        "4,500 updates, and the verdict was PASS. The verdict of the present run is also PASS. The present run no "
        "longer keeps answers without a thought (26, 151 and 12 of 7,900 answers in the three seeds). The start "
        "model of seed 1 is still the weakest of the three (.174 pass@1), and most of the mean difference between "
        "the two students comes from seed 1. In seeds 0 and 2, pass@1 of the distilled model is .08 and .14 "
        "higher than pass@1 of the model trained with RL.",
        "",
        "The confidence interval measures the variation between problems, not between seeds. Both students have "
        "the same number of samples, but the teacher's samples are longer and contain more tokens. The teacher's "
        "own RL used another 30,720 answers, which are not counted as samples of the student. The filter itself "
        "guarantees that no wrong answer and no mixed-language answer is kept. So the check of the kept answers "
        "only tests the software.",
        "",
        "The fine-tuned base model is better than its teacher in two seeds of three, because the training data "
        "were filtered.",
    ),
)
