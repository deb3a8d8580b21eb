"""The later stages of the R1 pipeline: rejection sampling keeps correct answers in one language, and distils them."""

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
        "start": Arm(start, measures, "cold start: fine-tuned on demonstrations of chains in two languages"),
        "teacher": Arm(teacher, measures, "RL with rewards for correct answers and one language"),
        "rejection": Arm(rejection, measures, "the base, fine-tuned on what was kept"),
        "small_start": Arm(small_start, measures, "a model of half the width, fine-tuned the same way"),
        "small_distilled": Arm(distilled, measures, "and fine-tuned on what was kept"),
        "small_rl": Arm(consistent_step(small_start, seed, STEPS), measures, "and trained with RL itself"),
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
            "the small models had the same number of samples, each seed",
            f"{format_values(distilled_samples, 0)} / {format_values(rl_samples, 0)}",
            distilled_samples == rl_samples,
        ),
        Check(
            "premise",
            f"small_start: correct {MIN_SMALL_START} or more, each seed: ten answers are possible, and RL needs some "
            "correct ones",
            format_values(small_start),
            min(small_start) >= MIN_SMALL_START,
        ),
        signal_check(results, "small_rl"),
        Check(
            "must hold",
            "rejection keeps nothing wrong and nothing in two languages",
            format_values(kept_faults, 0),
            not any(kept_faults),
        ),
        Check("reported", "answers dropped as wrong or in two languages", format_values(dropped, 0), True),
        Check(
            "must hold",
            f"rejection: {MIN_GAIN} above the cold start, each seed",
            f"{format_values(rejection)} against {format_values(start)}",
            all(a >= b + MIN_GAIN for a, b in zip(rejection, start, strict=True)),
        ),
        Check(
            "must hold",
            f"rejection: at least {MIN_SHARE_OF_TEACHER} of the teacher, mean of seeds",
            f"{format_values(rejection)} against {format_values(teacher)}",
            fmean(rejection) >= MIN_SHARE_OF_TEACHER * fmean(teacher),
        ),
        Check(
            "must hold",
            "small: distilled above trained with RL, each seed",
            format_values(gains, sign=True),
            min(gains) > 0,
        ),
        Check(
            "must hold",
            "small: distilled above trained with RL, interval of the mean above 0",
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
            difference.low > 0,
        ),
        *(
            Check(
                "reported",
                f"{arm}: share of answers whose thought has words",
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
    sentence="Filtered answers of a model trained with RL teach a small model better than its own RL does",
    budget="30,720 answers sampled for each student, by the teacher or by itself",
    premise="the number of samples is the same, and the small model's own RL has some correct answers to begin with",
    rule="rejection keeps nothing wrong and nothing in two languages; the base fine-tuned on it is .15 above the cold "
    "start and has .9 of the teacher; the distilled small model is above the one trained with RL in every seed, with "
    "the interval of the mean above 0",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "Counted three times before. PASS, with small starts of 2,200 updates, one of which was at chance (.107), and "
        "with a reward for language that an empty thought earned in full. That seed's RL found the empty thought "
        "(words in .13 of its answers, .46 before) and nothing else, so its +.73 was not the effect of distillation. "
        "Then, with no reward for an empty thought and a premise that asks for a start above chance, INVALID: after "
        "3,300 updates the same seed's start was .138 where .15 is asked. PASS with 4,500, and now again, since "
        "answers without a thought are no longer kept (26, 151 and 12 of 7,900). That seed is still the slowest to "
        "learn (.174) and has most of the mean difference; in the others distillation gains .08 and .14.",
        "",
        "The interval is over problems, not over seeds. The samples are equal in number, but the teacher's are longer, "
        "so they have more tokens. The teacher's own RL, another 30,720 answers, is not counted for its student. That "
        "nothing wrong and nothing in two languages is kept follows from the filter: the line checks the software.",
        "",
        "The fine-tuned base is better than its teacher in two seeds of three: its training data were filtered.",
    ),
)
